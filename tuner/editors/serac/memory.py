"""SERAC: a small counterfactual model answers where a prompt is in the scope of an edit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel

from tuner.deltas.memory.memory import MemoryState
from tuner.editing.companions import ModelReference, Surroundings
from tuner.editors._retrieval.memory import (
    Reader,
    ScopedMemory,
    ScopedState,
    classifier_record,
    named,
    restore_scope,
    unnamed,
)
from tuner.editors.serac.counterfactual import Counterfactual
from tuner.errors import ConfigError


@final
class SeracState(ScopedState):
    """What must be known of a SERAC memory beside the trained weights."""

    kind: Literal["serac"] = "serac"
    counterfactual: ModelReference


@final
@dataclass(frozen=True)
class SeracDelta(ScopedMemory):
    """Edits as text; in their scope a counterfactual model answers, which reads edit and prompt.

    Routing is hard: the base model has no part in an answer in scope.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.
    """

    counterfactual: Counterfactual
    state_type: ClassVar[type[MemoryState]] = SeracState

    def reader(self, network: PreTrainedModel) -> Reader:
        """Return the counterfactual model."""
        small = self.counterfactual.small
        return Reader(self.counterfactual.network, small.tokenizer, small.texts)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights that were trained."""
        return super().tensors() | named("counterfactual", self.counterfactual.weights)

    @property
    def state(self) -> SeracState:
        """What must be known beside the weights."""
        small = self.counterfactual.small
        return SeracState(
            strength=self.strength,
            edits=self.edits,
            threshold=self.scope.threshold,
            joint=self.joint,
            form=self.scope.classifier.form,
            classifier=classifier_record(self.scope.classifier),
            counterfactual=ModelReference(
                id=small.id,
                revision=small.revision,
                fingerprint=small.fingerprint,
                dtype="float32",
            ),
        )

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the memory that `state` and `tensors()` described.

        Raises:
            ConfigError: they belong to another kind, or a model cannot be loaded.
            BaseMismatch: a model that it brings along is another one now.
        """
        if not isinstance(state, SeracState):
            raise ConfigError("A SERAC memory needs a record of its own kind.")
        small = surroundings.companions.recall(state.counterfactual)
        counterfactual = Counterfactual(small, unnamed("counterfactual", tensors))
        _ = counterfactual.network  # what does not fit fails before anything is run
        return cls(
            state.strength,
            restore_scope(state, tensors, surroundings),
            state.joint,
            surroundings.tokenizer(),
            counterfactual,
        )
