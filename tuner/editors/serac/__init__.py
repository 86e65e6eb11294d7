"""SERAC: scope classifier and counterfactual model (Mitchell et al. 2022, arXiv:2206.06520)."""
