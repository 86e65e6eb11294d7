"""Locality against the true answers."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._facts import has_neighbour_tokens
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class LocalityGold(Metric):
    """Locality against the true answers."""

    label = "locality, against the true answers"
    group = "facts"

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return has_neighbour_tokens(split, criterion)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.neighbour_success
