"""Where prompts end: what a memory routes by, and what a forward pass alone does not say.

A pass over a prompt and its target looks like one over a longer prompt. A caller that knows better
says so by `prompts_end_at`; `generate` says so by itself inside an edit. Without a word, all that
the first pass reads is the prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tuner.editing.forward_call import Call
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as token ids; padding, on either side, is outside the mask."""

    ids: Int[Tensor, "prompts width"]
    mask: Bool[Tensor, "prompts width"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> Self:
        """Return prompts, padded on the right."""
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return cls(ids.to(device), mask.to(device))

    @classmethod
    def whole(cls, ids: Int[Tensor, "prompts width"]) -> Self:
        """Return prompts of one length."""
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    @classmethod
    def batches(
        cls, rows: Sequence[Sequence[int]], device: torch.device, size: int = 32
    ) -> Iterator[Self]:
        """Yield the prompts in their order, a few at a time."""
        for start in range(0, len(rows), size):
            yield cls.of(rows[start : start + size], device)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def last(self) -> Int[Tensor, " prompts"]:
        """The column of each prompt's last token."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return torch.where(self.mask, columns, -1).amax(dim=1)

    @property
    def positions(self) -> Int[Tensor, "prompts width"]:
        """The place of each token in its prompt, however it is padded."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def tokens(self) -> list[list[int]]:
        """Return the token ids of each prompt, without padding."""
        return [row[keep].tolist() for row, keep in zip(self.ids, self.mask, strict=True)]


@final
@dataclass(frozen=True)
class Routes:
    """Which entry of a memory each prompt is nearest to, and whether it is in its scope.

    `needed` is the least strength of the memory at which it is; infinite where no strength helps.
    Strength widens scopes, so all strengths share these numbers.
    """

    entries: Int[Tensor, " prompts"]
    needed: Float[Tensor, " prompts"]

    def inside(self, strength: float) -> Bool[Tensor, " prompts"]:
        """Return which prompts are in the scope of their entry at a strength; none at 0."""
        return (self.needed <= strength) & (strength > 0)


@final
@dataclass
class Turn:
    """Prompts and what has followed them, over one forward pass or several."""

    ends: int | Sequence[int] | None
    """The column after each prompt's last token; one for all, or one each."""
    ids: Int[Tensor, "rows read"] | None = None
    mask: Bool[Tensor, "rows read"] | None = None
    past: int = 0
    """How many columns had been read before the last pass."""
    routes: Routes | None = None
    """What was decided from the prompts, once for the whole turn."""

    def read(self, call: Call) -> None:
        """Take in what a pass reads.

        Raises:
            ConfigError: it goes on from a cache that was filled outside this turn.
        """
        held = 0 if call.cache is None else call.cache.get_seq_length()
        if held == 0:
            # Another batch, or the same one read again from its start, as without a cache.
            self.past, self.ids = 0, call.ids
        elif self.ids is None or held != self.ids.shape[1]:
            raise ConfigError(
                f"The cache holds {held} tokens, but a memory must see a prompt as a whole. Use "
                "`generate`, or read prompt and continuation inside `prompts_end_at`."
            )
        else:
            self.past, self.ids = held, torch.cat((self.ids, call.ids), dim=1)
        self.mask = self._mask_of(call)

    @property
    def prompts(self) -> Prompts:
        """The prompts, in the columns that they were read in."""
        ids, mask = self._whole
        columns = torch.arange(ids.shape[1], device=ids.device)
        return Prompts(ids, mask & (columns < self._ends_of(ids)[:, None]))

    def continuations(self) -> list[list[int]]:
        """Return the tokens that have followed each prompt."""
        ids, mask = self._whole
        columns = torch.arange(ids.shape[1], device=ids.device)
        follows = mask & (columns >= self._ends_of(ids)[:, None])
        return [row[keep].tolist() for row, keep in zip(ids, follows, strict=True)]

    @property
    def _whole(self) -> tuple[Tensor, Tensor]:
        if self.ids is None or self.mask is None:
            raise ConfigError("Nothing has been read yet.")
        return self.ids, self.mask

    def _ends_of(self, ids: Tensor) -> Int[Tensor, " rows"]:
        if self.ends is None:
            self.ends = ids.shape[1]
        if isinstance(self.ends, int):
            return torch.full((len(ids),), self.ends, device=ids.device)
        if len(self.ends) != len(ids):
            raise ConfigError(f"{len(self.ends)} ends of prompts were given for {len(ids)} rows.")
        return torch.tensor(self.ends, device=ids.device)

    def _mask_of(self, call: Call) -> Bool[Tensor, "rows read"]:
        ids = self.ids
        if ids is None:
            raise ConfigError("Nothing has been read yet.")
        if call.mask is None:
            return torch.ones_like(ids, dtype=torch.bool)
        if call.mask.shape[1] != ids.shape[1]:
            raise ConfigError(
                f"The attention mask has {call.mask.shape[1]} columns for {ids.shape[1]} tokens."
            )
        return call.mask.bool()


# Scoped, not global: each context, and so each thread, sees its own. A forward pass has no room
# for an argument of ours, and a flag on the network would outlive an error.
_TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)
_ASIDE: ContextVar[bool] = ContextVar("aside", default=False)


@contextmanager
def prompts_end_at(ends: int | Sequence[int]) -> Iterator[None]:
    """Mark where prompts end in `input_ids`, for the passes in the context.

    They are one batch: either each pass reads it from its start, or the passes go on from each
    other's cache.
    """
    token = _TURN.set(Turn(ends))
    try:
        yield
    finally:
        _TURN.reset(token)


@contextmanager
def aside() -> Iterator[None]:
    """Let a memory read the network that it is applied to, as if it were not."""
    token = _ASIDE.set(True)
    try:
        yield
    finally:
        _ASIDE.reset(token)


@final
@dataclass
class Turns:
    """The passes of a network, as a memory inside it follows them."""

    turn: Turn | None = None
    """The turn of the pass that is going on; None between passes and where nothing is to change."""
    call: Call | None = None

    @classmethod
    @contextmanager
    def followed(cls, network: PreTrainedModel, *, beams_with_cache: bool = True) -> Iterator[Self]:
        """Follow all passes of `network` inside the context.

        Without `beams_with_cache`, beams are searched without a cache: they swap rows in it, which
        a memory that keeps its own record of the rows would not notice.
        """
        turns = cls()

        def begin(_: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            turns.turn, turns.call = None, None
            if _ASIDE.get():
                return
            turns.call = Call.of("A memory", network.forward, args, kwargs)
            turn = _TURN.get() or Turn(None)
            turn.read(turns.call)
            turns.turn = turn

        def end(_: PreTrainedModel, args: tuple[Any, ...], output: Any) -> None:
            turns.turn, turns.call = None, None

        handles = (
            network.register_forward_pre_hook(begin, with_kwargs=True),
            network.register_forward_hook(end, always_call=True),
        )
        try:
            with _generation_marked(network, beams_with_cache):
                yield turns
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _generation_marked(network: PreTrainedModel, beams_with_cache: bool) -> Iterator[None]:
    """Let `network.generate` say that what it is given is the prompt."""
    plain: Callable[..., Any] = network.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        if given is None:
            raise ConfigError("A memory needs input_ids to generate from.")
        settings = kwargs.get("generation_config") or network.generation_config
        beams = kwargs.get("num_beams") or settings.num_beams or 1
        if beams > 1 and not beams_with_cache:
            kwargs = {**kwargs, "use_cache": False}
        with prompts_end_at(given.shape[1]):
            return plain(*args, **kwargs)

    network.generate = generate
    try:
        yield
    finally:
        # What the class defines shows again.
        del network.generate
