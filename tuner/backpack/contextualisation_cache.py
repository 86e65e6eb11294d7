"""What a Backpack said of token batches, kept for as long as its weights stay as they are.

How a position weighs senses does not depend on what the senses are. An edit of senses therefore
changes the last hidden state of a position by exactly the weights it gives to the edited tokens
before it, times the change of their senses; everything else can be kept from one edit to the next.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tuner.backpack.contextualisation import Contextualisation, mix
from tuner.backpack.offsets import SenseOffsets

_recurring: ContextVar[bool] = ContextVar("recurring", default=False)


@contextmanager
def texts_recur() -> Iterator[None]:
    """Say that the texts read inside the context will be read again, so that they are kept.

    Without a word nothing is kept: what an edit serves is hardly ever the same text twice.
    """
    token = _recurring.set(True)
    try:
        yield
    finally:
        _recurring.reset(token)


@final
@dataclass(frozen=True)
class Remembered:
    """A batch of token sequences as the model without offsets reads it."""

    ids: Int[Tensor, "batch length"]
    context: Contextualisation
    log_total: Float[Tensor, "batch senses length"]
    hidden: Float[Tensor, "batch length width"]

    @property
    def bytes(self) -> int:
        """The memory it takes."""
        context = self.context
        parts = (context.query, context.key, context.allowed, self.log_total, self.hidden)
        return sum(part.nbytes for part in parts)

    def shift(
        self, offsets: SenseOffsets, positions: Int[Tensor, " kept"], senses: int
    ) -> tuple[Bool[Tensor, " batch"], Float[Tensor, "touched kept width"]]:
        """Return which rows hold a token with offsets, and by how much their states change."""
        edited = offsets.touched(self.ids)
        rows = edited.any(dim=1)
        edited = edited[rows]
        most = int(edited.sum(dim=1).max()) if len(edited) else 0
        # The edited places of each row; short rows are filled up with places without offsets.
        places = edited.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        added = offsets.at(self.ids[rows].gather(1, places), senses)
        query, key = self.context.query[rows][:, :, positions], self.context.key[rows]
        index = places[:, None, :, None].expand(-1, senses, -1, key.shape[-1])
        scores = query @ key.gather(2, index).transpose(-1, -2) * query.shape[-1] ** -0.5
        allowed = self.context.allowed.expand(len(self.ids), -1, -1, -1)[rows][:, :, positions]
        seen = allowed.gather(3, places[:, None, None, :].expand(-1, 1, len(positions), -1))
        # Before the exponential: what a position must not see may outweigh all that it sees.
        scores = scores.to(self.log_total.dtype).masked_fill(~seen, -torch.inf)
        weights = (scores - self.log_total[rows][:, :, positions, None]).exp()
        return rows, mix(weights.to(added.dtype), added)


@final
@dataclass
class ContextualisationCache:
    """Batches of token sequences by their content. It forgets all when a weight changes.

    Only what is written into the numbers of `weight.data` behind PyTorch's back goes unseen.
    """

    most_bytes: int = 1 << 30
    kept: dict[bytes, Remembered] = field(default_factory=dict)
    _weights: Sequence[nn.Parameter] = ()
    _states: Sequence[tuple[int, int, torch.dtype]] = ()
    _bytes: int = 0

    def recall(
        self,
        weights: Sequence[nn.Parameter],
        ids: Int[Tensor, "batch length"],
        mask: Int[Tensor, "batch length"] | None,
        read: Callable[[], Remembered],
    ) -> Remembered:
        """Return what a model of these weights says of a batch; `read` asks it where needed.

        Where `texts_recur`, what is read is kept; what was longest not asked for makes room.
        """
        # In-place writes raise a tensor's version; another dtype or device moves its numbers.
        states = [(weight._version, weight.data_ptr(), weight.dtype) for weight in weights]
        same = len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights))
        if not same or states != self._states:
            self.kept.clear()
            self._weights, self._states, self._bytes = weights, states, 0
        key = _content(ids) + (b"" if mask is None else _content(mask))
        remembered = self.kept.pop(key, None)
        if remembered is not None:
            # Back in at the end: what stands in front was longest not asked for.
            self.kept[key] = remembered
            return remembered
        remembered = read()
        if _recurring.get() and remembered.bytes <= self.most_bytes:
            while self._bytes + remembered.bytes > self.most_bytes:
                self._bytes -= self.kept.pop(next(iter(self.kept))).bytes
            self.kept[key] = remembered
            self._bytes += remembered.bytes
        return remembered

    def __deepcopy__(self, memo: dict[int, object]) -> "ContextualisationCache":
        """Return a memory of its own for a copy of the model: its weights may change apart."""
        return ContextualisationCache(self.most_bytes)


def _content(tokens: Tensor) -> bytes:
    return str(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes()
