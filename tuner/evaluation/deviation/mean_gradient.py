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

PRECISE = (torch.float32, torch.float64)
"""In these the linear part of a block's rise may be taken by a small step."""


@final
@dataclass(frozen=True)
class MeanGradient:
    """The gradient of the relative rise of the loss on some blocks, by parameter, in float32.

    Its blocks are other text than what is measured on, from the same source.
    """

    tensors: Mapping[str, Tensor]
    blocks: int

    def worth(self, read: int) -> float:
        """Return the factor on the control's weight that leaves the least error.

        The mean is a second sample, as good as its size.
        """
        return self.blocks / (self.blocks + read)

    def along(self, delta: Delta) -> float | None:
        """Return the linear part of the deviation of `delta` on these blocks, if it is known.

        Of senses it is known for built-in models only: their table is many times larger than
        what is stored of any change of them.
        """
        match delta:
            case WeightDelta(changes) if all(name in self.tensors for name in changes):
                return sum(change.inner(self.tensors[name]) for name, change in changes.items())
            case SenseDelta(pairs, vectors) if SENSES in self.tensors:
                table = self.tensors[SENSES]
                rows = table[pairs[:, 0].to(table.device), pairs[:, 1].to(table.device)]
                return float((rows * vectors.to(rows)).sum(dtype=torch.float64))
        return None


def shipped_mean_gradient(model: LanguageModel, corpus: Corpus) -> MeanGradient | None:
    """Return the gradient that a built-in model brings, from much more text of the same source."""
    provider = provider_of(corpus.name)
    if provider is None or model.dtype not in PRECISE:
        return None
    shipped = provider.shipped_gradient(model.network)
    if shipped is None or shipped.length != corpus.blocks.shape[1]:
        return None
    tensors = {name: value.to(model.device) for name, value in shipped.tensors.items()}
    return MeanGradient(tensors, shipped.blocks)


def add_gradients(network: nn.Module, batches: Iterable[Int[Tensor, "blocks length"]]) -> float:
    """Add the gradient of the summed loss of blocks to that of the parameters; return that loss."""
    total = 0.0
    for ids in batches:
        logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = token_losses(logits, ids[:, 1:]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
