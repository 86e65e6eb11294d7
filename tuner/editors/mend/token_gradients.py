"""What the linear maps of a network read at each token of some examples, and how they should move.

The gradient of a map's weights is the sum over tokens of the outer products of the two.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.editing.likelihood import EncodedExample, MeanOver, shares_of, training_losses
from tuner.editing.task import LossKind
from tuner.editors._locate_then_edit.layer_band_editor import Factors
from tuner.errors import EditError

# Examples per pass; the tokens of all of them are kept, and nothing else.
_ROWS = 32


@final
@dataclass(frozen=True)
class TokenGradients:
    """Inputs u of a linear map, and gradients δ of the loss by its outputs, in float32.

    Tokens where either is zero throughout are left out: they add nothing to ∇W = Σ δuᵀ.
    """

    inputs: Float[Tensor, "tokens d_in"]
    gradients: Float[Tensor, "tokens d_out"]


def token_gradients(
    network: PreTrainedModel,
    maps: Sequence[str],
    loss: LossKind,
    rows: Sequence[EncodedExample],
    pad_id: int,
    mean_over: MeanOver = "tokens",
) -> dict[str, TokenGradients]:
    """Return what the maps read, and the gradients of the rows' mean training loss there.

    Source: Mitchell et al. 2022 (arXiv:2110.11309), §3.1, and their code.

    Raises:
        EditError: the loss or a gradient is NaN or infinite.
    """
    shares = shares_of(rows, mean_over) / len(rows)
    parts = [
        _pass(network, maps, loss, rows[part], shares[part], pad_id)
        for part in (slice(start, start + _ROWS) for start in range(0, len(rows), _ROWS))
    ]
    return {
        name: TokenGradients(
            torch.cat([part[name].inputs for part in parts]),
            torch.cat([part[name].gradients for part in parts]),
        )
        for name in maps
    }


@contextmanager
def moved_maps(network: nn.Module, changes: Mapping[str, Factors]) -> Iterator[None]:
    """Change linear maps as if `left @ right` were added to their weights, inside the context.

    Gradients flow into the factors, and no weight is written.
    """

    def mover(change: Factors) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def move(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            moved: Tensor = output + (inputs[0] @ change.right.T) @ change.left.T
            return moved

        return move

    with _hooked(network, {name: mover(change) for name, change in changes.items()}):
        yield


@torch.enable_grad()  # the consumer may pull steps from within no_grad
def _pass(
    network: PreTrainedModel,
    maps: Sequence[str],
    loss: LossKind,
    rows: Sequence[EncodedExample],
    shares: Float[Tensor, " rows"],
    pad_id: int,
) -> dict[str, TokenGradients]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keeper(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            # All weights are frozen, so the first map's output is what gradients start from.
            if not output.requires_grad:
                output.requires_grad_(True)
            seen[name] = (inputs[0].detach(), output)
            # Falcon's layers go on to add to the output in place, which a leaf does not take.
            return output.clone()

        return keep

    with _hooked(network, {name: keeper(name) for name in maps}):
        losses = training_losses(network, loss, rows, pad_id)
        value = (losses * shares.to(losses.device)).sum()
    slopes = torch.autograd.grad(value, [seen[name][1] for name in maps])
    by_map = {
        name: _without_idle(seen[name][0], slope) for name, slope in zip(maps, slopes, strict=True)
    }
    if not all(torch.isfinite(part.gradients).all() for part in by_map.values()):
        raise EditError("The gradients of the examples hold NaN or infinite values.")
    return by_map


def _without_idle(inputs: Tensor, gradients: Tensor) -> TokenGradients:
    inputs, gradients = inputs.flatten(0, -2).float(), gradients.flatten(0, -2).float()
    busy = (inputs != 0).any(dim=1) & (gradients != 0).any(dim=1)
    return TokenGradients(inputs[busy], gradients[busy])


@contextmanager
def _hooked(
    network: nn.Module, hooks: Mapping[str, Callable[[nn.Module, tuple[Any, ...], Tensor], Any]]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name, hook in hooks.items():
            handle = network.get_submodule(name).register_forward_hook(hook)
            stack.callback(handle.remove)
        yield
