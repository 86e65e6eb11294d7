"""By how much an edit breaks the constraints that its task or study carries beside the budget."""

import math
from collections.abc import Sequence

from tuner.editing.constraint import Constraint
from tuner.editing.task import Task
from tuner.errors import ConfigError
from tuner.evaluation.metrics import trusted_metric
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
                edited.figures()[constraint.metric], base.figures()[constraint.metric]
            )
        )
        for constraint in constraints
    }


def check_measured(constraints: Sequence[Constraint], task: Task) -> None:
    """Refuse constraints on scores that cannot be measured on both splits of a task.

    Raises:
        ConfigError: the task has not what a constraint is about.
    """
    for name, split in (("val", task.val), ("test", task.test)):
        judged = split.limited(task.simultaneous_edits)
        for constraint in constraints:
            if not trusted_metric(constraint.metric).is_measured_on(judged, task.success):
                raise ConfigError(
                    f"The constraint {constraint.name} cannot be judged: the {name} split of "
                    f"{task.name} has not the rows, or the task not the success rule, by which "
                    f"{constraint.metric} is measured. Provide them, or drop the constraint."
                )


def _clipped(violation: float) -> float:
    return WORST if math.isnan(violation) else max(-WORST, min(WORST, violation))
