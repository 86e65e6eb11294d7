"""Shared by the editors that train: loop, rows, amortised training."""
