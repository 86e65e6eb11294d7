"""Merging changes of one matrix that were learnt apart."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def ties_merged(
    changes: Float[Tensor, "changes rows columns"], density: float
) -> Float[Tensor, "rows columns"]:
    """Return one change: trimmed, with a sign elected for each entry, averaged where it agrees.

    Of each change the largest `density` of its non-zero entries are kept. The sign of an entry is
    that of the sum; the changes that have it are averaged, and the others have no say.

    Source: Yadav et al. 2023 (arXiv:2306.01708), §4. They trim by all entries, zeros included,
    which does nothing to changes that are sparser than `density` from the start.
    """
    trimmed = torch.stack([_trimmed(change, density) for change in changes])
    elected = trimmed.sum(dim=0).sign()
    agrees = (trimmed.sign() == elected) & (trimmed != 0)
    count = agrees.sum(dim=0).clamp(min=1)
    return torch.where(agrees, trimmed, 0.0).sum(dim=0) / count


def _trimmed(change: Float[Tensor, "rows columns"], density: float) -> Tensor:
    sizes = change.abs().flatten()
    kept = math.ceil(density * int(sizes.count_nonzero()))
    if kept == 0:
        return torch.zeros_like(change)
    least = sizes.topk(kept).values[-1]
    return torch.where(change.abs() >= least, change, 0.0)
