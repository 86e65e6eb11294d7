"""Retrieve and prompt: the base model reads the stored edit that a prompt is about."""

from collections.abc import Iterator
from typing import ClassVar, final

from tuner.deltas.memory.memory import CarriedMemory
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors._retrieval.editor import ScopeEditor
from tuner.editors._retrieval.scope import Scope
from tuner.editors.retrieve_and_prompt.memory import RetrievalDelta


@final
class RetrieveAndPrompt(ScopeEditor):
    """Stores edits as text and puts the right one before a prompt in its scope.

    SERAC without its counterfactual model: only the scope classifier is trained.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4, "RP".
    """

    # The base model itself must read the stored edit and answer by it.
    works_on_random_models: ClassVar[bool] = False

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the memory, once.

        Raises:
            ConfigError: there is nothing to train on, or the examples do not say targets.
            EditError: the training diverged or ran out of memory.
        """
        stored = self.stored(examples)
        match aux.carried:
            case CarriedMemory(RetrievalDelta() as earlier):
                memory = earlier.with_edits(examples.rows)
            case _:
                scope = Scope(stored, self.trained_classifier(aux), self.threshold)
                memory = RetrievalDelta(1.0, scope, self.joint, model.tokenizer)
        yield EpochEdit(memory, carried=CarriedMemory(memory))
