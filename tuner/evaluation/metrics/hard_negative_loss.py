"""The loss of hard negatives."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class HardNegativeLoss(Metric):
    """The loss of hard negatives."""

    label = "hard negatives, nats"
    lower_is_better = True

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return bool(split.hard_negatives.rows)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.hard_negative_loss
