"""The strength search meets budgets on curves whose answer is known."""

from collections.abc import Callable

import pytest

from tuner.evaluation.deviation.budget import Deviation
from tuner.evaluation.deviation.scaling import StrengthSearch, strongest


def _exact(value: float) -> Deviation:
    return Deviation(
        estimate=value, standard_error=0, lower=value, upper=value, tokens=1, confidence=0.95
    )


def _search(curve: Callable[[float], float]) -> tuple[StrengthSearch, list[float]]:
    asked: list[float] = []

    def measure(alpha: float, epsilon: float) -> Deviation:
        asked.append(alpha)
        return _exact(curve(alpha))

    return StrengthSearch(measure, {1.0: _exact(curve(1.0))}), asked


CURVES: dict[str, Callable[[float], float]] = {
    "quadratic": lambda a: 3e-2 * a**2,
    "linear": lambda a: 2e-3 * a,
    "first falls, then rises": lambda a: -2e-4 * a + 5e-3 * a**2,
    "explodes": lambda a: 1e-3 * a + 40 * a**4,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("epsilon", [1e-3, 1e-4])
def test_finds_most_of_the_allowed_strength(name: str, epsilon: float) -> None:
    curve = CURVES[name]
    search, asked = _search(curve)
    found = search.largest(epsilon)
    grid = [i / 10_000 for i in range(1, 10_001)]
    allowed = max(alpha for alpha in grid if curve(alpha) <= epsilon)
    if allowed < 0.03:
        return
    assert found is not None
    alpha, deviation = found
    assert deviation.estimate <= epsilon
    assert alpha >= 0.55 * allowed
    assert len(asked) <= 4


def test_an_edit_within_the_budget_keeps_its_full_strength() -> None:
    search, asked = _search(lambda a: 1e-6 * a)
    assert search.largest(1e-3) == (1.0, _exact(1e-6))
    assert asked == []


def test_hopeless_edits_give_nothing() -> None:
    search, _ = _search(lambda a: 100 * a**0.1)
    assert search.largest(1e-3) is None


def test_budgets_share_their_measurements() -> None:
    search, asked = _search(CURVES["quadratic"])
    search.largest(1e-4)
    before = len(asked)
    search.largest(1e-4)
    assert len(asked) == before


@pytest.mark.parametrize("name", CURVES)
def test_no_strength_above_the_most_is_used(name: str) -> None:
    for most in (0.0, 0.1, 0.5):
        search, asked = _search(CURVES[name])
        search.most = most
        found = search.largest(1e-3)
        assert all(alpha <= most for alpha in asked)
        assert search.predict(1e-3) <= most
        assert found is None or found[0] <= most
    roomy, _ = _search(lambda a: 1e-6 * a)
    roomy.most = 0.5
    assert roomy.largest(1e-3) == (0.5, _exact(5e-7))


@pytest.mark.parametrize("limit", [1.0, 0.3])
@pytest.mark.parametrize("edge", [0.9, 0.5, 0.11, 0.04])
def test_the_strongest_that_is_kept_is_found_in_a_few_looks(limit: float, edge: float) -> None:
    asked: list[float] = []

    def kept(alpha: float) -> bool:
        asked.append(alpha)
        return alpha <= edge

    found = strongest(kept, limit)
    assert 0.7 * min(edge, limit) <= found <= min(edge, limit)
    assert len(asked) <= 8


def test_what_is_kept_at_no_strength_gives_none() -> None:
    assert strongest(lambda alpha: False, 1.0) == 0.0
    assert strongest(lambda alpha: True, 0.01) == 0.0  # too weak to be an edit
