"""The interface of all memories: stored edits, and the decision which prompts they are for."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self, final

from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel

from tuner.editing.delta import Delta
from tuner.editing.editor import Carried
from tuner.editing.prompts import Prompts, Routes
from tuner.editing.task import Example


class MemoryState(BaseModel):
    """What must be known of a memory beside its tensors, as it stands in `delta.json`.

    A subclass adds its fields and belongs to one kind of memory, whose `state_type` it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class MemoryDelta(Delta):
    """Stored edits with a router. No weight of the model changes, and two memories do not add up.

    Which entry a prompt is routed to, if any, is decided once from the prompt, and kept for all
    that follows it. `strength` is how far scopes reach, relative to what the edit chose: it takes
    the place of α, and 0 changes nothing.
    """

    strength: float
    state_type: ClassVar[type[MemoryState]]

    @abstractmethod
    def route(self, network: PreTrainedModel, prompts: Prompts) -> Routes:
        """Return the route of each prompt, whatever the strength.

        `network` is the base model; where this memory is applied to it, it is read `aside`.
        """
        ...

    def routes_before(
        self,
        network: PreTrainedModel,
        texts: Int[Tensor, "texts length"],
        ends: Sequence[int],
    ) -> tuple[Routes, ...]:
        """Return for each of `ends` the routes of the texts' beginnings up to that column.

        A memory that routes by what the model itself reads overrides this: the model is causal,
        so that one pass over the longest beginnings serves them all.
        """
        return tuple(self.route(network, Prompts.whole(texts[:, :end])) for end in ends)

    @abstractmethod
    def applied(self, network: PreTrainedModel) -> AbstractContextManager[None]:
        """Return a context in which `network` answers by the memory where prompts are in scope.

        Raises:
            BaseMismatch: the memory does not fit the network.
        """
        ...

    @abstractmethod
    def check_fit(self, network: PreTrainedModel) -> None:
        """Verify that the memory was made for a network like this one.

        Raises:
            BaseMismatch: a module, a width or a token that it speaks of is not there.
        """
        ...

    @property
    @abstractmethod
    def state(self) -> MemoryState:
        """What must be known beside the tensors, a `state_type`."""
        ...

    def entries_of(self, edits: Sequence[Example]) -> list[int] | None:
        """Return the entry that each edit has here, −1 where it has none.

        None is for memories whose entries are not edits, so that no prompt has a right one.
        """
        return None

    def scaled(self, alpha: float) -> Self:
        """Return the memory with scopes that reach `alpha` times as far."""
        return replace(self, strength=self.strength * alpha)

    def routes_as(self, other: "MemoryDelta") -> bool:
        """Return whether it is another memory but for its strength: their routes are the same."""
        return type(self) is type(other) and all(
            getattr(self, field.name) is getattr(other, field.name)
            for field in fields(self)
            if field.name != "strength"
        )


@final
@dataclass(frozen=True)
class CarriedMemory(Carried):
    """A memory that the next batch of edits goes into."""

    memory: MemoryDelta
