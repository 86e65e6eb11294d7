"""What the sampler is told about a trial: a value to raise and constraints to keep."""

import math
from collections.abc import Sequence
from typing import final

from pydantic import BaseModel, ConfigDict

from tuner.evaluation.constraints import WORST
from tuner.evaluation.deviation.budget import Deviation
from tuner.trial.records import EpochRecord, Outcome, Rule, TrialRecord

BUDGET = "budget"
"""The budget's name among the constraints in the ledger."""

# A logarithm, because samplers standardise linearly: one exploded trial would flatten everything
# near the budget. Clipped, because no part of the space is worth more than e⁵ budgets of detail.
_LIMIT = 5.0
# What is over a limit by less than this is told as over all the same.
_LEAST_VIOLATION = 1e-3


@final
class Objective(BaseModel):
    """One trial in the sampler's eyes: each constraint is kept where it is at most 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    constraints: dict[str, float]

    @property
    def feasible(self) -> bool:
        """Whether every constraint is kept."""
        return all(constraint <= 0 for constraint in self.constraints.values())


def objective_of(
    record: TrialRecord, rule: Rule, epsilon: float, further: Sequence[str] = ()
) -> Objective:
    """Return what the trial was worth for the budget `epsilon` under `rule`.

    `further` names the constraints beside the budget; all trials of a study have the same.

    - The rule found an answer: its success, and how far below the budget and the other limits
      it is.
    - It found none and fell back to the base model: saying "base success, budget kept" would
      teach that the region is harmless. The sampler is told of the edit that came nearest to the
      budget, and by how much it broke it and the others.
    - The trial failed: base success and the worst constraints, so that the region is avoided.
    """
    worst = {BUDGET: _LIMIT, **dict.fromkeys(further, WORST)}
    if record.outcome is Outcome.FAILED:
        return Objective(value=record.base.success if record.base else 0.0, constraints=worst)
    answer = record.answer(epsilon, rule)
    if answer.epoch is not None:
        # The rule accepted it, so it is feasible, whatever the last digit of the estimate says.
        budget = min(0.0, log_ratio(answer.deviation, epsilon))
        return Objective(value=answer.success, constraints={BUDGET: budget, **answer.violations})
    if not record.epochs:
        return Objective(value=answer.success, constraints=worst)
    nearest = min(record.epochs, key=lambda epoch: epoch.deviation.used(epsilon))
    budget = log_ratio(nearest.deviation, epsilon)
    if nearest.keeps_constraints:
        # Nothing was accepted: at least the upper bound is over the budget, so this is above 0.
        budget = max(budget, _LEAST_VIOLATION)
    value = answer.success if rule is Rule.FITTED else nearest.success
    return Objective(value=value, constraints={BUDGET: budget, **nearest.violations})


def epoch_value(epoch: EpochRecord, rule: Rule, epsilon: float) -> float:
    """Return how good the edit after an epoch is in a scheduler's eyes; higher is better.

    The rule `fitted` scales an edit down to the budget later, so what counts is its success. By the
    other rules an edit counts as it is: one that breaks the budget or a constraint is worth less
    than any that keeps them, by how far it is beyond the worst of them.

    Source: Deb 2000, An efficient constraint handling method for genetic algorithms, §3.
    """
    if rule is Rule.FITTED:
        return epoch.success
    beyond = max(log_ratio(epoch.deviation, epsilon), *epoch.violations.values(), -_LIMIT)
    return epoch.success if beyond <= 0 else -beyond


def log_ratio(deviation: Deviation, epsilon: float) -> float:
    """Return log(deviation / ε), clipped to ±5; at most 0 where the budget is kept.

    Where the budget limits the divergence too, the limit that is used up most counts.
    """
    used = deviation.used(epsilon)
    if used <= 0:
        return -_LIMIT
    return max(-_LIMIT, min(_LIMIT, math.log(used)))
