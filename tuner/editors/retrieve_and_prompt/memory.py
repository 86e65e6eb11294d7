"""Retrieve and prompt: the base model itself reads the edit that a prompt is about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel

from tuner.deltas.memory.memory import MemoryState
from tuner.editing.companions import Surroundings
from tuner.editors._retrieval.memory import (
    Reader,
    ScopedMemory,
    ScopedState,
    classifier_record,
    restore_scope,
)
from tuner.errors import ConfigError


@final
class RetrievalState(ScopedState):
    """What must be known of a retrieve-and-prompt memory beside the trained weights."""

    kind: Literal["retrieve_and_prompt"] = "retrieve_and_prompt"


@final
@dataclass(frozen=True)
class RetrievalDelta(ScopedMemory):
    """Edits as text; in their scope the base model reads the edit before the prompt.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4, "RP".
    """

    state_type: ClassVar[type[MemoryState]] = RetrievalState

    def reader(self, network: PreTrainedModel) -> Reader:
        """Return the base model."""
        return Reader(network, self.tokenizer, self.texts)

    @property
    def state(self) -> RetrievalState:
        """What must be known beside the weights."""
        return RetrievalState(
            strength=self.strength,
            edits=self.edits,
            threshold=self.scope.threshold,
            joint=self.joint,
            form=self.scope.classifier.form,
            classifier=classifier_record(self.scope.classifier),
        )

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the memory that `state` and `tensors()` described.

        Raises:
            ConfigError: they belong to another kind, or the encoder cannot be loaded.
            BaseMismatch: the encoder is another one now.
        """
        if not isinstance(state, RetrievalState):
            raise ConfigError("A retrieve-and-prompt memory needs a record of its own kind.")
        scope = restore_scope(state, tensors, surroundings)
        return cls(state.strength, scope, state.joint, surroundings.tokenizer())
