"""Which rows belong together: how their values are averaged, and what a bootstrap resamples."""

from collections.abc import Sequence
from typing import Self, final

import numpy as np

from tuner.editing.task import Example
from tuner.evaluation.scores import Interval
from tuner.evaluation.statistics.confidence import clustered_interval


@final
class Grouping:
    """The groups of a row set.

    Rows of one published record are averaged first and records then, as CounterFact and zsRE
    define their figures. A row set without records is averaged over its rows. Intervals resample
    records; where a row has none, its subject, and where it has none either, the row.
    """

    def __init__(self, names: Sequence[str], *, average_within: bool) -> None:
        self._names = np.array(names)
        _, self._index = np.unique(self._names, return_inverse=True)
        self._average_within = average_within

    @classmethod
    def of(cls, rows: Sequence[Example]) -> Self:
        """Return the groups of rows."""
        return cls(
            [row.record or row.subject or f"row {number}" for number, row in enumerate(rows)],
            average_within=any(row.record is not None for row in rows),
        )

    @property
    def count(self) -> int:
        """How many groups there are."""
        return int(self._index.max()) + 1

    def mean(self, values: Sequence[float] | np.ndarray) -> float:
        """Return the mean of one value per row, over records where there are any."""
        if not self._average_within:
            return float(sum(values) / len(values))
        return float(self._group_means(np.asarray(values, float)).mean())

    def ratio(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return for each row its group's sum of `values` over its group's sum of `weights`."""
        summed = np.bincount(self._index, weights=values)
        ratios: np.ndarray = (summed / np.bincount(self._index, weights=weights))[self._index]
        return ratios

    def interval(self, values: np.ndarray, *, confidence: float = 0.95) -> Interval:
        """Return a bootstrap interval of `mean(values)`, resampling whole groups."""
        if not self._average_within:
            return clustered_interval(values, self._names, confidence=confidence)
        means = self._group_means(values)
        return clustered_interval(means, np.arange(len(means)), confidence=confidence)

    def _group_means(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._index, weights=values) / np.bincount(self._index)
