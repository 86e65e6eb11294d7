"""Drawdown: predictions that change outside the edit's scope."""

from typing import final

from tuner.editing.task import Split, SuccessCriterion
from tuner.evaluation.metrics._drawdown import measures_drawdown
from tuner.evaluation.metrics._metric import Metric, Readings


@final
class Drawdown(Metric):
    """Drawdown: predictions that change outside the edit's scope."""

    label = "drawdown"
    lower_is_better = True

    @classmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether the split has the rows for it."""
        return measures_drawdown(split, criterion)

    def measure(self, readings: Readings) -> float | None:
        """Return it for the model as it stands."""
        return readings.drawdown
