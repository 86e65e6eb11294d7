"""GRACE: a codebook of keys and values at one layer (Hartvigsen et al. 2023, arXiv:2211.11031)."""
