"""Fluency of sampled text."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class Fluency(Metric):
    """Fluency of sampled text."""

    label = "fluency (sampled text)"
    group = "free text"

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return bool(split.generations)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.free_text[0] if readings.free_text else None
