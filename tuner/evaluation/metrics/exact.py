"""Exact match of free-running generation."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class Exact(Metric):
    """Exact match of free-running generation."""

    label = "exact (greedy generation)"

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return True

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.exact
