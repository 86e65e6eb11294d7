"""The strength at which an edit just keeps a budget."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

from tuner.evaluation.deviation.budget import Deviation, Verdict

# Below this strength hardly anything of an edit is left.
LEAST_ALPHA = 0.02
# Close enough to the strongest that keeps the budget.
_TOLERANCE = 0.75
_ATTEMPTS = 4
# Aim under the budget: on the line itself a decision takes the whole corpus. Deviation grows with
# the square of the strength, so this costs a sixth of it at most.
_AIM = 0.7


@final
@dataclass
class StrengthSearch:
    """Looks for the largest α at which an edit probably keeps a budget.

    It remembers every measurement, so that searches for several budgets share them.
    """

    measure: Callable[[float, float], Deviation]
    """(alpha, epsilon) ↦ deviation, read until epsilon is decided."""
    seen: dict[float, Deviation] = field(default_factory=dict)
    most: float = 1.0
    """No greater α may be used, however far it is within the budget."""

    def largest(self, epsilon: float) -> tuple[float, Deviation] | None:
        """Return the largest α found with its deviation, or None where even a trace is too much.

        Source: the line search measured on the built-in world; the guesses assume that the
        deviation grows as aα + bα² (linear where the base is not stationary on the text).
        """
        low, high = 0.0, math.inf
        for alpha, deviation in self.seen.items():
            if alpha <= self.most and deviation.probably_within(epsilon):
                low = max(low, alpha)
        for alpha, deviation in self.seen.items():
            if alpha > low and not deviation.probably_within(epsilon):
                high = min(high, alpha)
        for _ in range(_ATTEMPTS):
            if low >= self.most or low >= _TOLERANCE * high:
                break
            alpha = self._guess(epsilon, low, high)
            if alpha < LEAST_ALPHA:
                break
            deviation = self.measure(alpha, epsilon)
            self.seen[alpha] = deviation
            if deviation.probably_within(epsilon):
                low = alpha
            else:
                high = alpha
        return (low, self.seen[low]) if low > 0 else None

    def predict(self, epsilon: float) -> float:
        """Return the α at which `epsilon` will probably be met, without measuring anything."""
        low = max((a for a, d in self.seen.items() if d.probably_within(epsilon)), default=0.0)
        high = min(
            (a for a, d in self.seen.items() if a > low and not d.probably_within(epsilon)),
            default=math.inf,
        )
        return self.most if low >= self.most else self._guess(epsilon, low, high)

    def _guess(self, epsilon: float, low: float, high: float) -> float:
        """Return the next α to try, between `low` and `high`."""
        if math.isinf(high):
            return self.most
        loads = {alpha: deviation.load(epsilon) for alpha, deviation in self.seen.items()}
        guess = _solve(loads, _AIM * epsilon, high)
        bottom = low if low > 0 else high / 20
        guess = min(max(guess, bottom + 0.1 * (high - bottom)), bottom + 0.9 * (high - bottom))
        return min(guess, self.most)


def strongest(kept: Callable[[float], bool], limit: float) -> float:
    """Return the largest α up to `limit` that was found at which `kept` holds, or 0.

    By bisection, which assumes no more than that what a strength keeps, lesser strengths keep.
    """
    low, high, alpha = 0.0, limit, limit
    while alpha >= LEAST_ALPHA and low < _TOLERANCE * high:
        if kept(alpha):
            low = alpha
        else:
            high = alpha
        alpha = (low + high) / 2
    return low


def surely_over(deviation: Deviation, epsilon: float) -> bool:
    """Return whether an edit is over the budget beyond doubt."""
    return deviation.verdict(epsilon) is Verdict.OVER


def _solve(loads: Mapping[float, float], aim: float, high: float) -> float:
    """Return where aα + bα², laid through the two points nearest below `high`, meets `aim`."""
    points = sorted((a, load) for a, load in loads.items() if a <= high)
    a2, d2 = points[-1]
    if len(points) == 1 or d2 <= 0:
        return a2 * math.sqrt(aim / d2) if d2 > aim else a2
    a1, d1 = points[-2]
    # Slopes d/α are linear in α: s(α) = a + bα.
    b = (d2 / a2 - d1 / a1) / (a2 - a1)
    a = d1 / a1 - b * a1
    if abs(b) < 1e-15:
        return aim / a if a > 0 else a2
    root = a * a + 4 * b * aim
    if root < 0:
        return a2 * math.sqrt(aim / d2)
    alpha = (-a + math.sqrt(root)) / (2 * b)
    return alpha if 0 < alpha < high else a2 * math.sqrt(aim / d2)
