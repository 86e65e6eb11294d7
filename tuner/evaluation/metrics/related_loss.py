"""The loss of related text."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class RelatedLoss(Metric):
    """The loss of related text."""

    label = "related text, nats per token"
    lower_is_better = True

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return bool(split.related)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.related_loss
