"""Exact match of free-running generation on the canonical rows."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._facts import is_of_facts
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class EfficacyExact(Metric):
    """Exact match of free-running generation on the canonical rows."""

    label = "efficacy, exact (greedy generation)"
    group = "facts"
    costly = True

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return is_of_facts(criterion)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.canonical_exact
