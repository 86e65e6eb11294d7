"""Sense finetuning: free vectors for the few senses of a Backpack that matter to the examples."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, final

from tuner.editing.companions import Companions
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors.senses.training import SenseEditor, check_backpack


@final
class Senses(SenseEditor):
    """Changes a few senses of a few tokens (Hewitt et al. 2024, arXiv:2402.06155, §5)."""

    smoke_settings: ClassVar[Mapping[str, object]] = {"learning_rate": 0.1, "epochs": 2}

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the model has senses.

        Raises:
            ConfigError: it is not a Backpack.
        """
        check_backpack(model)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change of the selected senses after each epoch.

        Raises:
            ConfigError: the model is not a Backpack.
            EditError: the training diverged or ran out of memory.
        """
        for delta, loss in self.train_senses(model, examples, aux, seed=seed):
            yield EpochEdit(delta, loss)
