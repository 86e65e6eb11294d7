"""By how much an edit breaks the constraints that its task or study carries beside the budget."""

import math
from collections.abc import Sequence

from tuner.editing.constraint import Constraint
from tuner.errors import ConfigError
from tuner.evaluation.scores import Scores

# An edit that is beyond a limit by five times the number given is as bad as can be: samplers
# standardise linearly, and would see nothing of what lies near the limit.
WORST = 5.0


def violations(constraints: Sequence[Constraint], edited: Scores, base: Scores) -> dict[str, float]:
    """Return per constraint, by name, how far the edited model is beyond it; at most 0 is kept.

    In units of the number that the constraint gives, clipped to ±5.
    """
    return {
        constraint.name: _clipped(
            constraint.violation(
                float(getattr(edited, constraint.metric)), float(getattr(base, constraint.metric))
            )
        )
        for constraint in constraints
    }


def check_measured(constraints: Sequence[Constraint], base: Scores, where: str) -> None:
    """Refuse constraints on scores that cannot be measured.

    Raises:
        ConfigError: a score that a constraint is about is not measured on `where`.
    """
    for constraint in constraints:
        if getattr(base, constraint.metric) is None:
            raise ConfigError(
                f"The constraint {constraint.name} cannot be judged: {where} has not the rows, or "
                f"the task not the success rule, by which {constraint.metric} is measured. "
                "Provide them, or drop the constraint."
            )


def _clipped(violation: float) -> float:
    return WORST if math.isnan(violation) else max(-WORST, min(WORST, violation))
