"""Confidence that holds at every moment of a sequential evaluation."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tuner.evaluation.scores import Interval


def sequence_radius(count: int, confidence: float, planned: int) -> float:
    """Return the half-width of a confidence sequence for a mean, in standard deviations.

    The interval mean ± radius · deviation covers the truth at all counts together. It is
    narrowest, relative to its possible width, when the evaluation stops near `planned`
    observations.

    Source: the normal-mixture asymptotic confidence sequence of Waudby-Smith et al. 2021
    (arXiv:2103.06476), theorem 2.2 and the choice of ρ in their appendix.

    Raises:
        ValueError: `count` or `planned` is not positive.
    """
    if count < 1 or planned < 1:
        raise ValueError(f"count and planned must be positive, but got {count}, {planned}.")
    error = 1 - confidence
    tail = -2 * math.log(error)
    rho2 = (tail + math.log(tail + 1)) / planned
    scaled = count * rho2 + 1
    return math.sqrt(scaled / (count**2 * rho2) * math.log(scaled / error**2))


def most_events(seen: int, confidence: float) -> float:
    """Return the upper bound of the expected number of events of which `seen` were observed.

    Source: the exact bound of a Poisson mean (Garwood 1936); 3 for none seen, at 95 %.
    """
    return float(stats.chi2.ppf(confidence, 2 * (seen + 1)) / 2)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Return Student's interval of a mean of independent values; None where they do not differ."""
    if len(values) < 2 or min(values) == max(values):
        return None
    mean = float(np.mean(values))
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=stats.sem(values))
    return Interval(low=float(low), high=float(high), confidence=confidence)


def clustered_interval(
    differences: np.ndarray, clusters: np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return a bootstrap interval of the mean of `differences`, resampling whole clusters.

    Rows about one subject succeed or fail together, so they are not independent. The interval is
    the percentile bootstrap (bias-corrected bootstraps fail where all clusters agree).
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, weights=differences)
    counts = np.bincount(index).astype(float)
    if len(sums) < 2 or np.ptp(sums / counts) == 0:
        # All clusters agree, so resampling shows no spread, yet the next cluster may differ: by
        # the rule of succession its share is at most 1 − error^(1/clusters), at either side.
        mean = float(differences.mean())
        width = 1 - (1 - confidence) ** (1 / max(len(sums), 1))
        # No share, nor a difference of shares, lies beyond one.
        low, high = max(-1.0, mean - width), min(1.0, mean + width)
        return Interval(low=low, high=high, confidence=confidence)
    result = stats.bootstrap(
        (sums, counts),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    bounds = result.confidence_interval
    return Interval(low=float(bounds.low), high=float(bounds.high), confidence=confidence)
