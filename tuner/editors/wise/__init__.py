"""WISE: a side memory of one MLP output map (Wang et al. 2024, arXiv:2405.14768)."""
