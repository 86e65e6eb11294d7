"""Confidence sequences cover the truth at every look; intervals resample whole subjects."""

import math

import numpy as np
import pytest

from tuner.evaluation.statistics.confidence import clustered_interval, sequence_radius


def test_sequence_covers_at_all_looks_together() -> None:
    random = np.random.default_rng(0)
    walks = 400
    draws = random.standard_exponential((walks, 1500)) - 1.0  # skewed, mean zero
    counts = np.arange(64, 1501, 32)
    missed = np.zeros(walks, bool)
    for count in counts:
        seen = draws[:, :count]
        radius = seen.std(axis=1, ddof=1) * sequence_radius(int(count), 0.95, 256)
        missed |= np.abs(seen.mean(axis=1)) > radius
    # Nominal 5 %; three standard errors of the share of 400 walks on top.
    assert missed.mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / walks)


def test_radius_shrinks_with_data_and_grows_with_confidence() -> None:
    radii = [sequence_radius(count, 0.95, 256) for count in (64, 256, 1024, 10_000)]
    assert radii == sorted(radii, reverse=True)
    assert sequence_radius(256, 0.99, 256) > sequence_radius(256, 0.95, 256)
    # Wider than a fixed-size interval, which would not survive stopping early.
    assert sequence_radius(256, 0.95, 256) > 1.96 / math.sqrt(256)


def test_radius_wants_observations() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        sequence_radius(0, 0.95, 256)


def test_clusters_widen_the_interval() -> None:
    random = np.random.default_rng(1)
    per_subject = random.integers(0, 2, 30)
    rows = np.repeat(per_subject, 8).astype(float)
    clustered = clustered_interval(rows, np.repeat(np.arange(30), 8))
    independent = clustered_interval(rows, np.arange(240))
    assert clustered.low < rows.mean() < clustered.high
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)


def test_agreeing_rows_still_leave_doubt() -> None:
    interval = clustered_interval(np.zeros(100), np.repeat(np.arange(10), 10))
    assert interval.low < 0 < interval.high
    assert interval.high == pytest.approx(1 - 0.05 ** (1 / 10))
