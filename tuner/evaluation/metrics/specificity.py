"""Specificity, or locality: the neighbours stay as they should be."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._facts import has_neighbours
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class Specificity(Metric):
    """Specificity, or locality: the neighbours stay as they should be."""

    label = "specificity"
    group = "facts"

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return has_neighbours(split, criterion)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.neighbour_success
