"""What an edit must keep beside the deviation budget: limits on single scores."""

import importlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Self, TypeAlias, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tuner.errors import ConfigError


def _lower_is_better(metric: str) -> bool | None:
    """Return whether limits on a metric are upper bounds; None for an outsider's not imported yet.

    A task is a stranger's file, which must not make us import what it names, and a study can be
    shown where its metrics cannot be imported; what measures them refuses that.

    Constraints belong to tasks, which every method knows; metrics are measured far above them, and
    are known here by their names.

    Raises:
        ValueError: there is no such metric.
    """
    registry = importlib.import_module("tuner.evaluation.metrics").METRICS
    try:
        kind = registry.find_trusted(metric)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return None if kind is None else bool(kind.lower_is_better)


def _known(metric: str) -> str:
    _lower_is_better(metric)
    return metric


class _Limit(StrEnum):
    """The ways to limit a score: relative to the base model's, or as it is."""

    RISE = "rise"
    CEILING = "ceiling"
    DROP = "drop"
    FLOOR = "floor"

    @property
    def is_for_losses(self) -> bool:
        return self in (_Limit.RISE, _Limit.CEILING)


_Bound: TypeAlias = Annotated[
    float | None,
    Field(gt=0, allow_inf_nan=False, exclude_if=lambda bound: bound is None),
]


@final
class Constraint(BaseModel):
    """A limit on one score of the edited model.

    {metric: hard_negative_loss, rise: 0.05}    at most 0.05 nats above the base model's
    {metric: hard_negative_loss, ceiling: 2.5}  at most 2.5 nats
    {metric: drawdown, ceiling: 0.05}           at most 0.05
    {metric: exact, drop: 0.05}                 at most 0.05 below the base model's
    {metric: exact, floor: 0.7}                 at least 0.7
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Annotated[str, AfterValidator(_known)] = Field(
        description="A metric's name, or package.module:Class."
    )
    rise: _Bound = Field(default=None, description="Most above the base model's loss.")
    ceiling: _Bound = Field(default=None, description="Highest loss, or drawdown.")
    drop: _Bound = Field(default=None, description="Most below the base model's score.")
    floor: _Bound = Field(default=None, description="Lowest score.")

    @model_validator(mode="after")
    def _one_limit_that_suits_the_metric(self) -> Self:
        lower_is_better = _lower_is_better(self.metric)
        fitting = [limit for limit in _Limit if lower_is_better in (None, limit.is_for_losses)]
        given = [limit for limit in _Limit if getattr(self, limit) is not None]
        if len(given) != 1 or given[0] not in fitting:
            raise ValueError(
                f"{self.metric} needs exactly one of `{'` and `'.join(fitting)}`, "
                f"but got {' and '.join(given) or 'none'}."
            )
        return self

    @property
    def name(self) -> str:
        """Its name in records and in the ledger: `hard_negative_loss.rise`."""
        return f"{self.metric}.{self._limit}"

    @property
    def words(self) -> str:
        """The constraint as people say it."""
        match self._limit:
            case _Limit.RISE:
                return f"{self.metric} at most {self._bound:g} above the base model's"
            case _Limit.CEILING:
                return f"{self.metric} at most {self._bound:g}"
            case _Limit.DROP:
                return f"{self.metric} at most {self._bound:g} below the base model's"
            case _Limit.FLOOR:
                return f"{self.metric} at least {self._bound:g}"

    def violation(self, edited: float, base: float) -> float:
        """Return how far the edited model is beyond the limit, in units of the number given.

        At most 0 where the constraint is kept. A rise of 0.06 where 0.05 is allowed gives 0.2, and
        no rise gives -1.
        """
        match self._limit:
            case _Limit.RISE:
                beyond = (edited - base) / self._bound - 1
            case _Limit.CEILING:
                beyond = edited / self._bound - 1
            case _Limit.DROP:
                beyond = (base - edited) / self._bound - 1
            case _Limit.FLOOR:
                beyond = 1 - edited / self._bound
        # Shares of few rows meet their limit exactly, but for the last bit of the subtraction.
        return round(beyond, 9)

    @property
    def _limit(self) -> _Limit:
        return next(limit for limit in _Limit if getattr(self, limit) is not None)

    @property
    def _bound(self) -> float:
        return float(getattr(self, self._limit))

    @property
    def _leniency(self) -> float:
        return -self._bound if self._limit is _Limit.FLOOR else self._bound

    def stricter(self, other: "Constraint") -> "Constraint":
        """Return the one that allows less, of two with the same name."""
        return self if self._leniency <= other._leniency else other


def _name_each_once(constraints: tuple[Constraint, ...]) -> tuple[Constraint, ...]:
    names = [constraint.name for constraint in constraints]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"each limit may be given once, but {name} stands twice.")
    return constraints


Constraints: TypeAlias = Annotated[tuple[Constraint, ...], AfterValidator(_name_each_once)]
"""Constraints that a task or a study gives, all of which an edit must keep."""


def strictest(constraints: Iterable[Constraint]) -> tuple[Constraint, ...]:
    """Return the constraints without those that others of the same name make superfluous."""
    kept: dict[str, Constraint] = {}
    for constraint in constraints:
        known = kept.get(constraint.name, constraint)
        kept[constraint.name] = known.stricter(constraint)
    return tuple(kept.values())
