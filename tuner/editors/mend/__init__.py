"""MEND: hypernetworks that transform gradients (Mitchell et al. 2022, arXiv:2110.11309)."""
