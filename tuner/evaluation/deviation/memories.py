"""General text under a memory: what it routes to its edits, and what that costs."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tuner.deltas.memory.memory import MemoryDelta
from tuner.editing.likelihood import BlockChanges, token_divergences, token_losses
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Routes, prompts_end_at

# A memory judges prompts, and text has none. Each block is cut into this many parts; each part
# but the first is what follows a prompt, which is all of the block before it.
_PARTS = 8


@final
@dataclass
class MemoryDeviation:
    """Reads blocks of text as prompts that are continued, remembering where they are routed.

    A part changes only where the text before it is in scope, so most text is never read by the
    edited model. No part's route depends on what is still to come.
    """

    model: LanguageModel
    blocks: Int[Tensor, "blocks length"]
    batch: int
    _memory: MemoryDelta | None = None
    _routes: dict[tuple[int, int], tuple[Routes, ...]] = field(default_factory=dict)

    def changeable(self, delta: MemoryDelta, rows: range) -> Bool[Tensor, " rows"]:
        """Return which blocks have a part that the memory answers."""
        inside = [routes.inside(delta.strength) for routes in self._routes_of(delta, rows)]
        return torch.stack(inside).any(dim=0).cpu()

    @torch.no_grad()
    def changes(self, delta: MemoryDelta, rows: range) -> BlockChanges:
        """Return what the memory does to each block; both models read the parts in scope only."""
        blocks = self.blocks[rows.start : rows.stop]
        routed = self._routes_of(delta, rows)
        base, edited, divergences = (torch.zeros(len(rows), dtype=torch.float64) for _ in range(3))
        # Prefixes of one length make batches without padding.
        for (end, stop), routes in zip(pairwise(self._ends), routed, strict=True):
            inside = routes.inside(delta.strength).nonzero().flatten().cpu()
            for start in range(0, len(inside), self.batch):
                some = inside[start : start + self.batch]
                ids = blocks[some, :stop].to(self.model.device)
                before = self._read(ids, end)
                with self.model.edited(delta):
                    after = self._read(ids, end)
                base[some] += _summed(token_losses(before, ids[:, end:]))
                edited[some] += _summed(token_losses(after, ids[:, end:]))
                divergences[some] += _summed(token_divergences(before, after))
        return BlockChanges(edited - base, divergences)

    def _read(
        self, ids: Int[Tensor, "rows columns"], end: int
    ) -> Float[Tensor, "rows predicted vocabulary"]:
        """Return the logits of what follows column `end`, under the model as it stands."""
        kept = torch.arange(end - 1, ids.shape[1] - 1, device=ids.device)
        with prompts_end_at(end):
            logits: Tensor = self.model.network(
                input_ids=ids, logits_to_keep=kept, use_cache=False
            ).logits
        return logits

    @property
    def _ends(self) -> list[int]:
        """The column where each part but the first begins, and the end of the block."""
        length = self.blocks.shape[1]
        return [length * part // _PARTS for part in range(1, _PARTS + 1)]

    def _routes_of(self, delta: MemoryDelta, rows: range) -> tuple[Routes, ...]:
        """Return the routes before each part but the first; strengths of a memory share them."""
        if self._memory is None or not delta.routes_as(self._memory):
            self._memory, self._routes = delta, {}
        key = (rows.start, rows.stop)
        if key not in self._routes:
            self._routes[key] = self._routes_before(delta, self.blocks[rows.start : rows.stop])
        return self._routes[key]

    def _routes_before(
        self, delta: MemoryDelta, blocks: Int[Tensor, "rows length"]
    ) -> tuple[Routes, ...]:
        batches = [
            delta.routes_before(self.model.network, some.to(self.model.device), self._ends[:-1])
            for some in torch.split(blocks, self.batch)
        ]
        return tuple(
            Routes(
                torch.cat([routes.entries for routes in of_end]),
                torch.cat([routes.needed for routes in of_end]),
            )
            for of_end in zip(*batches, strict=True)
        )


def _summed(values: Float[Tensor, "rows predicted"]) -> Float[Tensor, " rows"]:
    return values.sum(dim=1, dtype=torch.float64).cpu()
