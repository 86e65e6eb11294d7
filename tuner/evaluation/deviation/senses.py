"""General text under an edit of senses, read only where it can differ from the base model's."""

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tuner.backpack import BackpackForCausalLM, SenseOffsets, texts_recur
from tuner.deltas.senses import SenseDelta
from tuner.editing.likelihood import BlockChanges, token_divergences, token_losses


@final
@dataclass
class SenseDeviation:
    """Reads blocks in fixed batches, remembering what the base model makes of each.

    A block without an edited token changes by exactly zero, and a position before the first one
    does too. The rest follows from the remembered contextualisation, without the transformer.
    The network has no offsets of its own.
    """

    network: BackpackForCausalLM
    blocks: Int[Tensor, "blocks length"]
    batch: int
    _base: dict[int, Float[Tensor, "batch predicted"]] = field(default_factory=dict)

    @torch.no_grad()
    def changes(self, delta: SenseDelta, rows: range) -> BlockChanges:
        """Return what the edit does to each block."""
        losses, divergences = (torch.zeros(len(rows), dtype=torch.float64) for _ in range(2))
        for start in range(rows.start - rows.start % self.batch, rows.stop, self.batch):
            here = range(max(start, rows.start), min(start + self.batch, rows.stop))
            if delta.can_change(self.blocks[here.start : here.stop]).any():
                part = self._changes_in(start, delta)
                wanted = slice(here.start - start, here.stop - start)
                place = slice(here.start - rows.start, here.stop - rows.start)
                losses[place] = part.losses[wanted]
                divergences[place] = part.divergences[wanted]
        return BlockChanges(losses, divergences)

    def _changes_in(self, start: int, delta: SenseDelta) -> BlockChanges:
        ids = self._batch_at(start).to(self.network.device)
        with texts_recur():
            known = self.network.backpack.recall(ids)
        base = self._base_losses(start, ids, known.hidden)
        positions = torch.arange(ids.shape[1] - 1, device=ids.device)
        offsets = SenseOffsets(delta.pairs.to(ids.device), delta.vectors.to(known.hidden))
        rows, shift = known.shift(offsets, positions, self.network.config.num_senses)
        # Only positions that see an edited token.
        seen = offsets.touched(ids[:, :-1]).cummax(dim=1).values
        before = known.hidden[:, :-1][seen]
        edited = self.network.lm_head(before + shift[seen[rows]])
        losses = token_losses(edited[None], ids[:, 1:][seen][None])[0]
        rises, divergences = (
            torch.zeros(base.shape, dtype=torch.float64, device=ids.device) for _ in range(2)
        )
        rises[seen] = losses.double() - base[seen].double()
        divergences[seen] = token_divergences(self.network.lm_head(before), edited).double()
        return BlockChanges(rises.sum(dim=1).cpu(), divergences.sum(dim=1).cpu())

    def _batch_at(self, start: int) -> Int[Tensor, "batch length"]:
        return self.blocks[start : start + self.batch]

    def _base_losses(self, start: int, ids: Tensor, hidden: Tensor) -> Tensor:
        if start not in self._base:
            self._base[start] = token_losses(self.network.lm_head(hidden[:, :-1]), ids[:, 1:])
        return self._base[start]
