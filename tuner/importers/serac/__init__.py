"""The published data of SERAC (Mitchell et al. 2022, arXiv:2206.06520)."""
