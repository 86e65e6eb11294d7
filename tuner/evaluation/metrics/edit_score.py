"""The harmonic mean of efficacy, generalisation and specificity."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._facts import harmonic_mean, has_neighbours
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class EditScore(Metric):
    """The harmonic mean of efficacy, generalisation and specificity."""

    label = "edit score"
    group = "facts"

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return has_neighbours(split, criterion)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        shares = (
            readings.canonical_success,
            readings.success,
            readings.neighbour_success,
        )
        known = [share for share in shares if share is not None]
        return harmonic_mean(*known) if len(known) == len(shares) else None
