"""Consistency of sampled text with its references."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class Consistency(Metric):
    """Consistency of sampled text with its references."""

    label = "consistency (sampled text)"
    group = "free text"

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return any(row.references for row in split.generations)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.free_text[1] if readings.free_text else None
