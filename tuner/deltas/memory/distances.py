"""Distances between states, exact for states that are one and the same."""

import torch
from jaxtyping import Float
from torch import Tensor


def distances_between(
    queries: Float[Tensor, "queries hidden"], keys: Float[Tensor, "keys hidden"]
) -> Float[Tensor, "queries keys"]:
    """Return the Euclidean distance of each query to each key.

    torch's quick form, |q|² - 2qk + |k|², loses all digits where a query is a key itself, and
    which processor takes it differs; a memory lives by just these distances.
    """
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")
