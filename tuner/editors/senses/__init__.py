"""Sense finetuning of a Backpack (Hewitt et al. 2024, arXiv:2402.06155)."""
