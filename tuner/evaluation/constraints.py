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


def check_measured(wanted: Sequence[Constraint | str], task: Task) -> None:
    """Refuse constraints and metrics, by name, that cannot be measured on both splits of a task.

    Raises:
        ConfigError: the task has not what one of them is about.
    """
    for name, split in (("val", task.val), ("test", task.test)):
        judged = split.limited(task.simultaneous_edits)
        for asked in wanted:
            metric = asked if isinstance(asked, str) else asked.metric
            if trusted_metric(metric).is_measured_on(judged, task.success):
                continue
            what, instead = (
                (f"metric {asked} cannot be reported", "drop the metric")
                if isinstance(asked, str)
                else (f"constraint {asked.name} cannot be judged", "drop the constraint")
            )
            raise ConfigError(
                f"The {what}: the {name} split of {task.name} has not the rows, or the task not "
                f"the success rule, by which {metric} is measured. Provide them, or {instead}."
            )


def _clipped(violation: float) -> float:
    return WORST if math.isnan(violation) else max(-WORST, min(WORST, violation))
