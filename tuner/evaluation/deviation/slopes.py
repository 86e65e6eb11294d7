"""The slope of each block's loss in the strength of an edit, by differentiation."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuner.editing.adapters import linear_map
from tuner.editing.delta import Change, Delta, LowRank, WeightDelta
from tuner.editing.likelihood import read_blocks, token_losses


def has_slopes(network: nn.Module, delta: Delta) -> bool:
    """Return whether all that an edit changes are weights of linear maps."""
    return isinstance(delta, WeightDelta) and all(
        linear_map(network, name) is not None for name in delta.changes
    )


@torch.enable_grad()  # the caller may measure from within no_grad
def block_slopes(
    network: PreTrainedModel, delta: WeightDelta, blocks: Int[Tensor, "blocks length"]
) -> Float[Tensor, " blocks"]:
    """Return d NLL(block) / dα at α = 0 of each block under `α · delta`, in nats, as float64.

    One strength per block is a variable, so a single backward pass gives all slopes. No weight
    needs a gradient.
    """
    ids = blocks.to(network.device)
    strengths = torch.zeros(len(ids), device=network.device, requires_grad=True)
    with _scaled_beside(network, delta, strengths):
        losses = token_losses(read_blocks(network, ids), ids[:, 1:]).sum()
        (slopes,) = torch.autograd.grad(losses, strengths)
    return slopes.double().cpu()


@contextmanager
def _scaled_beside(
    network: nn.Module, delta: WeightDelta, strengths: Float[Tensor, " rows"]
) -> Iterator[None]:
    """Hold an edit beside the weights, at one strength per row of the batch."""
    with ExitStack() as stack:
        for name, change in delta.changes.items():
            module = linear_map(network, name)
            if module is None:  # the caller has asked `has_slopes`
                raise ValueError(f"{name!r} is not the weight of a linear map.")
            hook = _Strength(change, module, strengths)
            stack.callback(module.register_forward_hook(hook).remove)
        yield


class _Strength:
    """Adds α·Δ·x to what a linear map makes of x, with α by row of the batch."""

    def __init__(self, change: Change, module: nn.Linear | Conv1D, strengths: Tensor) -> None:
        transposed = isinstance(module, Conv1D)
        self._strengths = strengths
        if isinstance(change, LowRank):
            parts = [change.left.T, change.right.T] if transposed else [change.right, change.left]
        else:
            dense = change.to_dense(module.weight.shape)
            parts = [dense.T if transposed else dense]
        self._maps = [part.to(module.weight.device, torch.float32) for part in parts]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = args[0].to(torch.float32)
        for matrix in self._maps:
            change = F.linear(change, matrix)
        # Some families hand their MLP all tokens of the batch as one list.
        rows = self._strengths.repeat_interleave(len(output) // len(self._strengths))
        scale = rows.reshape(-1, *[1] * (output.ndim - 1))
        return (output + scale * change).to(output.dtype)
