"""Training that serves many edits: by early stopping, once for all trials that share it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import final

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.editing.model import attention_kernel
from tuner.errors import EditError
from tuner.files.cache import Cache, Key


@final
@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    learning_rate: float
    steps: int
    """Optimiser steps at most."""
    warmup: int
    """Steps in which the learning rate rises to its value."""
    edits_per_step: int
    check_every: int
    """Steps between two looks at the held-out edits."""
    patience: int
    """Looks without a gain after which training ends."""
    gradient_clip: float
    held_out: float
    """Share of the edits that training is judged by."""
    seed: int


@torch.enable_grad()  # the consumer of an edit may pull it from within no_grad
def train(
    weights: Mapping[str, nn.Parameter],
    step_loss: Callable[[], Tensor],
    held_out_loss: Callable[[], float] | None,
    schedule: Schedule,
) -> None:
    """Train weights by Adam, in place, to where the held-out loss is least.

    Without a held-out loss they are trained to the end.

    Source: Mitchell et al. 2022 (arXiv:2206.06520) and their code: Adam, gradients clipped by
    their norm, no dropout, early stopping.

    Raises:
        EditError: a loss became NaN or infinite, or memory ran out.
    """
    free = [weight for weight in weights.values() if weight.requires_grad]
    optimiser = torch.optim.Adam(free, lr=schedule.learning_rate)
    least, waited = math.inf, 0
    best: dict[str, Tensor] = {}
    try:
        for step in range(1, schedule.steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * min(1.0, step / max(schedule.warmup, 1))
            optimiser.zero_grad(set_to_none=True)
            loss = step_loss()
            if not torch.isfinite(loss):
                raise EditError(f"The training loss became {loss.item()}; lower the learning rate.")
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(free, schedule.gradient_clip)
            optimiser.step()
            if held_out_loss is None or step % schedule.check_every:
                continue
            with torch.no_grad():
                measured = held_out_loss()
            waited += 1
            if measured < least:
                least, waited = measured, 0
                best = {name: weight.detach().clone() for name, weight in weights.items()}
            if waited >= schedule.patience:
                break
    except torch.OutOfMemoryError:
        raise EditError(
            "Memory ran out during training; lower edits_per_step or use a larger device."
        ) from None
    with torch.no_grad():
        for name, value in best.items():
            weights[name].copy_(value)


def trained_once(
    cache: Cache | None, kind: str, key: Key, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the trained weights that the cache has under `key`, or train and keep them.

    Of several trials at a time that need them one trains, and the others wait for it.
    """
    if cache is None:
        return make()
    with cache.made_once(kind, key):
        known = cache.load(kind, key)
        if known is None:
            known = make()
            cache.save(kind, key, known)
    return known


def training_key(
    network: PreTrainedModel, fingerprint: str, data: str, schedule: Schedule, settings: str
) -> Key:
    """Return everything that trained weights depend on.

    `data` is a hash of what is trained on, `settings` what else decides on the loss.
    """
    device = network.device
    return {
        "version": 3,  # of the training itself
        "model": fingerprint,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "attention": attention_kernel(network),
        "libraries": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "data": data,
        "schedule": json.dumps(asdict(schedule), sort_keys=True),
        "settings": settings,
    }


def changed_weights(
    weights: Mapping[str, nn.Parameter], base: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the weights that differ from the base's of the same name, or that it lacks."""
    return {
        name: weight.detach().cpu().contiguous().clone()
        for name, weight in weights.items()
        if name not in base or not torch.equal(weight, base[name])
    }
