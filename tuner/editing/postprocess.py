"""Making a finished weight change smaller: a share of its entries, or a lower rank."""

import torch
from torch import Tensor, nn

from tuner.editing.delta import Change, Dense, LowRank, Rows, WeightDelta

_TINY = 1e-8  # a weight of zero must not make every change of it infinitely large


@torch.no_grad()
def keep_largest(delta: WeightDelta, network: nn.Module, share: float) -> WeightDelta:
    """Return the change with only its largest entries relative to the weights; per parameter.

    Kept are the `share` of entries with the largest |ΔW| / (|W| + 1e-8), W being the weights of
    `network`. The count is rounded up. Source: Gu et al. 2024 (arXiv:2401.04700), RECT.
    """
    return WeightDelta(
        {
            name: _keep(change, network.get_parameter(name), share)
            for name, change in delta.changes.items()
        }
    )


def _keep(change: Change, weight: Tensor, share: float) -> Change:
    if isinstance(change, Rows):
        rows = weight.detach()[change.index.to(weight.device)].to(change.values.device)
        return Rows(change.index, _largest(change.values, rows, share))
    dense = change.to_dense(weight.shape)
    return Dense(_largest(dense, weight.detach().to(dense.device), share))


def _largest(values: Tensor, weight: Tensor, share: float) -> Tensor:
    relative = (values.abs() / (weight.abs().to(values.dtype) + _TINY)).flatten()
    count = -int(-(share * relative.numel()) // 1)
    # Ties are broken by position, so that exactly `count` entries stay.
    order = torch.argsort(relative, descending=True, stable=True)
    kept = torch.zeros_like(relative, dtype=torch.bool)
    kept[order[:count]] = True
    return torch.where(kept.reshape(values.shape), values, torch.zeros_like(values))


@torch.no_grad()
def truncate_rank(delta: WeightDelta, network: nn.Module, rank: int) -> WeightDelta:
    """Return the nearest change (in the Frobenius norm) of at most `rank` per matrix.

    Vectors, such as biases, stay as they are. Source: Eckart and Young 1936.
    """
    return WeightDelta(
        {
            name: _truncated(change, network.get_parameter(name).shape, rank)
            for name, change in delta.changes.items()
        }
    )


def _truncated(change: Change, shape: torch.Size, rank: int) -> Change:
    if len(shape) != 2 or (isinstance(change, LowRank) and change.left.shape[1] <= rank):
        return change
    left, sizes, right = torch.linalg.svd(change.to_dense(shape).double(), full_matrices=False)
    kept = min(rank, len(sizes))
    root = sizes[:kept].sqrt()
    return LowRank((left[:, :kept] * root).float(), (root[:, None] * right[:kept]).float())
