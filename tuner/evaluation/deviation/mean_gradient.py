"""The mean gradient of the loss on general text, which knows the linear part of any edit's cost.

A small edit changes the loss of each block first of all linearly, up here and down there; what
remains in the mean is mostly quadratic. The linear part is nearly all of the noise, and its mean
need not be sampled again for every edit: it is the product of the edit with one mean gradient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tuner.backpack import SENSES
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.likelihood import token_losses
from tuner.editing.model import LanguageModel
from tuner.editing.providers import provider_of
from tuner.files.cache import Cache, Key

_PRECISE = (torch.float32, torch.float64)
# More than most certificates need; the gradient costs three times as much as reading.
_MOST_TOKENS = 400_000
# A gradient is as large as the model, in memory and in the cache.
_MOST_PARAMETERS = 2_000_000_000


@final
@dataclass(frozen=True)
class MeanGradient:
    """The gradient, for every parameter, of the relative rise of the loss on some blocks."""

    tensors: Mapping[str, Tensor]
    blocks: int
    nested: bool
    """Whether its blocks are the first of the corpus that is measured on, or other text."""

    def worth(self, read: int) -> float:
        """Return the factor on the control's weight that leaves the least error.

        Of other text the mean is a second sample, as good as its size. Of the same text it says
        nothing more once all of it has been read.
        """
        if self.nested:
            return 1.0 if read < self.blocks else 0.0
        return self.blocks / (self.blocks + read)

    def along(self, delta: Delta) -> float | None:
        """Return the linear part of the deviation of `delta` on these blocks, if it is known.

        Of senses it is known for built-in models only: their table is many times larger than
        what is stored of any change of them.
        """
        match delta:
            case WeightDelta(changes):
                return sum(change.inner(self.tensors[name]) for name, change in changes.items())
            case SenseDelta(pairs, vectors) if SENSES in self.tensors:
                table = self.tensors[SENSES]
                rows = table[pairs[:, 0].to(table.device), pairs[:, 1].to(table.device)]
                return float((rows * vectors.to(rows)).sum(dtype=torch.float64))
        return None


def shipped_mean_gradient(model: LanguageModel, corpus: Corpus) -> MeanGradient | None:
    """Return the gradient that a built-in model brings, from much more text of the same source."""
    provider = provider_of(corpus.name)
    if provider is None or model.dtype not in _PRECISE:
        return None
    shipped = provider.shipped_gradient(model.network)
    if shipped is None or shipped.length != corpus.blocks.shape[1]:
        return None
    tensors = {name: value.to(model.device) for name, value in shipped.tensors.items()}
    return MeanGradient(tensors, shipped.blocks, nested=False)


def mean_gradient(
    model: LanguageModel, corpus: Corpus, *, batch: int, cache: Cache, key: Key
) -> MeanGradient | None:
    """Return the mean gradient on the first blocks of a corpus, `batch` blocks at a time.

    None where there cannot be one: a model in half precision rounds away the small step by which
    the linear part of each block is taken, and a gradient may not fit into memory.
    """
    if model.dtype not in _PRECISE:
        return None
    if sum(weight.numel() for weight in model.network.parameters()) > _MOST_PARAMETERS:
        return None
    blocks = corpus.blocks[: max(batch, _MOST_TOKENS // corpus.blocks.shape[1])]
    key = {**key, "blocks": len(blocks)}
    saved = cache.load("mean_gradient", key)
    if saved is None:
        try:
            saved = _computed(model, blocks, batch)
        except (torch.OutOfMemoryError, MemoryError):
            return None
        cache.save("mean_gradient", key, saved)
    saved = {name: value.to(model.device) for name, value in saved.items()}
    return MeanGradient(saved, len(blocks), nested=True)


def add_gradients(network: nn.Module, batches: Iterable[Int[Tensor, "blocks length"]]) -> float:
    """Add the gradient of the summed loss of blocks to that of the parameters; return that loss."""
    total = 0.0
    for ids in batches:
        logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = token_losses(logits, ids[:, 1:]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


@torch.enable_grad()  # the caller may measure from within no_grad
def _computed(model: LanguageModel, blocks: Tensor, batch: int) -> dict[str, Tensor]:
    network = model.network
    try:
        network.requires_grad_(True)
        total = add_gradients(
            network, (part.to(model.device) for part in torch.split(blocks, batch))
        )
        return {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad / total
            for name, weight in network.named_parameters()
        }
    finally:
        network.zero_grad(set_to_none=True)
        network.requires_grad_(False)
