"""Blocks of general text, read by the base model and by edited ones."""

from functools import cached_property
from typing import final

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

from tuner.backpack import BackpackForCausalLM
from tuner.deltas.memory.memory import MemoryDelta
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.likelihood import (
    BlockChanges,
    block_losses,
    read_blocks,
    token_divergences,
    token_losses,
)
from tuner.editing.model import LanguageModel
from tuner.errors import EditError
from tuner.evaluation.deviation.base_outputs import BaseOutputs
from tuner.evaluation.deviation.memories import MemoryDeviation
from tuner.evaluation.deviation.senses import SenseDeviation
from tuner.evaluation.deviation.slopes import block_slopes
from tuner.files.cache import Cache

# A chunk is what is read between two looks at the figures.
_FIRST_TOKENS, _NEXT_TOKENS = 4096, 2048
_FEWEST_BLOCKS = 8
# Blocks shorter than this are counted as if they were as long: a look has its price as well.
_SHORTEST = 64


@final
class BlockReader:
    """Reads the blocks of one corpus in fixed chunks and batches, keeping the base's losses."""

    def __init__(
        self, model: LanguageModel, corpus: Corpus, *, cache: Cache, tokens_per_batch: int
    ) -> None:
        self.model = model
        self.corpus = corpus
        self.batch = max(1, tokens_per_batch // corpus.blocks.shape[1])
        self._cache = cache
        saved = cache.load("base_losses", self.key)
        self._base: Float[Tensor, " blocks"] = (
            torch.empty(0, dtype=torch.float64) if saved is None else saved["losses"]
        )
        self._saved = len(self._base)

    @property
    def predicted_per_block(self) -> int:
        """How many tokens of each block have a predecessor."""
        return int(self.corpus.blocks.shape[1]) - 1

    def blocks_of(self, tokens: int, fewest: int) -> int:
        """Return how many blocks hold about so many tokens, and `fewest` at least."""
        return max(fewest, tokens // max(_SHORTEST, self.corpus.blocks.shape[1]))

    @cached_property
    def chunks(self) -> tuple[range, ...]:
        """The corpus in the pieces between which the figures are looked at."""
        total = len(self.corpus.blocks)
        stop = min(self.blocks_of(_FIRST_TOKENS, _FEWEST_BLOCKS), total)
        step = self.blocks_of(_NEXT_TOKENS, _FEWEST_BLOCKS // 2)
        starts = (0, *range(stop, total, step))
        return tuple(
            range(start, end) for start, end in zip(starts, (*starts[1:], total), strict=True)
        )

    def changes(self, delta: Delta, rows: range) -> BlockChanges:
        """Return what an edit does to each block.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        special = self._special(delta, rows)
        if special is not None:
            return special
        if not self.changeable(delta, rows).any():
            nothing = torch.zeros(len(rows), dtype=torch.float64)
            return BlockChanges(nothing, nothing)
        base = self.base_losses(rows.stop)[rows.start : rows.stop]
        losses, divergences = [], []
        for start in range(rows.start, rows.stop, self.batch):
            stop = min(start + self.batch, rows.stop)
            before = self._base_outputs.logits(start, stop)
            with self.model.edited(delta), torch.no_grad():
                ids = self.corpus.blocks[start:stop].to(self.model.device)
                after = read_blocks(self.model.network, ids)
            losses.append(token_losses(after, ids[:, 1:]).sum(dim=1, dtype=torch.float64).cpu())
            apart = token_divergences(before, after)
            divergences.append(apart.sum(dim=1, dtype=torch.float64).cpu())
        return BlockChanges(_finite(torch.cat(losses) - base), torch.cat(divergences))

    def rises(self, delta: Delta, rows: range) -> Float[Tensor, " rows"]:
        """Return by how much an edit raises each block's loss, in nats, as float64.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        special = self._special(delta, rows)
        if special is not None:
            return special.losses
        if not self.changeable(delta, rows).any():
            return torch.zeros(len(rows), dtype=torch.float64)
        base = self.base_losses(rows.stop)[rows.start : rows.stop]
        # One edited context per chunk: putting a delta in and out is not free on big models.
        with self.model.edited(delta):
            edited = self.losses(rows)
        return _finite(edited - base)

    def slopes(self, delta: Delta, rows: range) -> Float[Tensor, " rows"]:
        """Return the slope of each block's loss in an edit's strength, in nats, as float64."""
        if not isinstance(delta, WeightDelta):
            raise TypeError(f"{type(delta).__name__} has no slopes.")
        parts = [
            block_slopes(
                self.model.network,
                delta,
                self.corpus.blocks[start : min(start + self.batch, rows.stop)],
            )
            for start in range(rows.start, rows.stop, self.batch)
        ]
        return _finite(torch.cat(parts))

    def changeable(self, delta: Delta, rows: range) -> Bool[Tensor, " rows"]:
        """Return which blocks an edit can change at all."""
        if isinstance(delta, MemoryDelta):
            return self._memory_reading.changeable(delta, rows)
        return delta.can_change(self.corpus.blocks[rows.start : rows.stop])

    def losses(self, rows: range, size: int | None = None) -> Float[Tensor, " blocks"]:
        """Return the losses of some blocks under the weights as they stand, batch by batch."""
        size = size or self.batch
        return torch.cat(
            [
                block_losses(
                    self.model.network, self.corpus.blocks[start : min(start + size, rows.stop)]
                )
                for start in range(rows.start, rows.stop, size)
            ]
        )

    def base_losses(self, count: int) -> Float[Tensor, " blocks"]:
        """Return the base losses of the first `count` blocks, computing those not yet kept."""
        while len(self._base) < count:
            chunk = next(chunk for chunk in self.chunks if chunk.stop > len(self._base))
            # What is kept always ends with a chunk, so batches keep their shapes.
            self._base = torch.cat([self._base[: chunk.start], self.losses(chunk)])
        return self._base[:count]

    def save(self) -> None:
        """Keep the base losses for the next process, where there are new ones."""
        if len(self._base) > self._saved:
            self._cache.save("base_losses", self.key, {"losses": self._base})
            self._saved = len(self._base)

    @cached_property
    def key(self) -> dict[str, str | int]:
        """What the base losses depend on."""
        return {
            "model": self.model.fingerprint,
            "corpus": self.corpus.hash,
            "dtype": str(self.model.dtype),
            "device": self.model.device_name,
            "attention": self.model.kernel,
            "batch": self.batch,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def _special(self, delta: Delta, rows: range) -> BlockChanges | None:
        """Return the changes by a kind of delta that has a shorter way; None for other kinds."""
        senses = self._sense_reading
        if isinstance(delta, SenseDelta) and senses is not None:
            changes = senses.changes(delta, rows)
        elif isinstance(delta, MemoryDelta):
            changes = self._memory_reading.changes(delta, rows)
        else:
            return None
        _finite(changes.losses)
        return changes

    @cached_property
    def _base_outputs(self) -> BaseOutputs:
        return BaseOutputs(self.model.network, self.corpus.blocks, self.batch)

    @cached_property
    def _memory_reading(self) -> MemoryDeviation:
        return MemoryDeviation(self.model, self.corpus.blocks, self.batch)

    @cached_property
    def _sense_reading(self) -> SenseDeviation | None:
        """What reads edits of senses by what is known of the base; none for other models."""
        network = self.model.network
        if not isinstance(network, BackpackForCausalLM) or network.backpack.offsets is not None:
            return None
        if network.backpack.memory is None:
            return None
        return SenseDeviation(network, self.corpus.blocks, self.batch)


def _finite(rises: Float[Tensor, " blocks"]) -> Float[Tensor, " blocks"]:
    if not torch.isfinite(rises).all():
        raise EditError("The edited model's loss on general text is NaN or infinite.")
    return rises
