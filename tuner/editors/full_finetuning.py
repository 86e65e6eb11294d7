"""Full fine-tuning: every weight is free."""

from collections.abc import Iterator
from typing import final

import torch

from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.editor import Auxiliary, Step
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editing.training import TrainedEditor


@final
class FullFinetuning(TrainedEditor):
    """Trains all weights on the canonical examples.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §4, "full finetuning".
    """

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[Step]:
        """Yield the change of all weights after each epoch.

        Raises:
            EditError: the training diverged or ran out of memory.
        """
        base = dict(model.network.named_parameters())
        # In half precision Adam's small numbers vanish: train in single precision at least.
        network = model.twin(own=base).float().requires_grad_(True)
        trained = dict(network.named_parameters())
        for loss in self.descend(network, list(trained.values()), model, examples, aux, seed=seed):
            with torch.no_grad():
                changes = {
                    name: Dense(weight.float() - base[name].float())
                    for name, weight in trained.items()
                }
            yield Step(WeightDelta(changes).check_finite(), loss)
