"""Merging changes of one matrix that were learned apart."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

DensityOf = Literal["all", "changed"]


def ties_merged(
    changes: Float[Tensor, "changes rows columns"], density: float, of: DensityOf = "all"
) -> Float[Tensor, "rows columns"]:
    """Return one change: trimmed, with a sign elected for each entry, averaged where it agrees.

    Of each change the largest `density` of all entries are kept, zeros counted, or of its
    non-zero ones. The sign of an entry is that of the sum; the changes that have it are averaged,
    and the others have no say.

    Source: Yadav et al. 2023 (arXiv:2306.01708), §4. They trim by all entries, which does nothing
    to changes that are sparser than `density` from the start.
    """
    trimmed = torch.stack([_trimmed(change, density, of) for change in changes])
    elected = trimmed.sum(dim=0).sign()
    agrees = (trimmed.sign() == elected) & (trimmed != 0)
    count = agrees.sum(dim=0).clamp(min=1)
    return torch.where(agrees, trimmed, 0.0).sum(dim=0) / count


def _trimmed(change: Float[Tensor, "rows columns"], density: float, of: DensityOf) -> Tensor:
    sizes = change.abs().flatten()
    changed = int(sizes.count_nonzero())
    kept = math.ceil(density * (len(sizes) if of == "all" else changed))
    if kept == 0:
        return torch.zeros_like(change)
    if kept >= changed:
        return change
    least = sizes.topk(kept).values[-1]
    return torch.where(change.abs() >= least, change, 0.0)
