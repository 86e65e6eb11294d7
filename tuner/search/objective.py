"""What the sampler is told about a trial: a value to raise and a constraint to keep."""

import math
from typing import final

from pydantic import BaseModel, ConfigDict

from tuner.evaluation.budget import Deviation
from tuner.records import Outcome, Rule, TrialRecord

CONSTRAINT = "budget"
"""The constraint's name in the ledger."""

# A logarithm, because samplers standardise linearly: one exploded trial would flatten everything
# near the budget. Clipped, because no part of the space is worth more than e⁵ budgets of detail.
_LIMIT = 5.0


@final
class Objective(BaseModel):
    """One trial in the sampler's eyes. The budget is kept where `constraint` is at most 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    constraint: float


def objective_of(record: TrialRecord, rule: Rule, epsilon: float) -> Objective:
    """Return what the trial was worth for the budget `epsilon` under `rule`.

    - The rule found an answer: its success, and how far below the budget it is.
    - It found none and fell back to the base model: saying "base success, budget kept" would
      teach that the region is harmless. The sampler is told of the edit that came nearest to the
      budget, and by how much it broke it.
    - The trial failed: base success and the worst constraint, so that the region is avoided.
    """
    if record.outcome is Outcome.FAILED:
        return Objective(value=record.base.success if record.base else 0.0, constraint=_LIMIT)
    answer = record.answer(epsilon, rule)
    if answer.epoch is not None:
        # The rule accepted it, so it is feasible, whatever the last digit of the estimate says.
        constraint = min(0.0, log_ratio(answer.deviation, epsilon))
        return Objective(value=answer.success, constraint=constraint)
    if not record.epochs:
        return Objective(value=answer.success, constraint=_LIMIT)
    nearest = min(record.epochs, key=lambda epoch: epoch.deviation.estimate)
    # Nothing was accepted: at least the upper bound is over the budget, so this is above 0.
    violation = max(log_ratio(nearest.deviation, epsilon), 1e-3)
    value = answer.success if rule is Rule.FITTED else nearest.success
    return Objective(value=value, constraint=violation)


def log_ratio(deviation: Deviation, epsilon: float) -> float:
    """Return log(deviation / ε), clipped to ±5; at most 0 where the budget is kept."""
    if deviation.estimate <= 0:
        return -_LIMIT
    return max(-_LIMIT, min(_LIMIT, math.log(deviation.estimate / epsilon)))
