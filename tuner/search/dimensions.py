"""The values that one hyperparameter may take: an entry of a space's YAML, as Optuna knows it."""

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self, TypeAlias, final

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

# Beyond this, floats and so the samplers tell whole numbers no longer apart.
_WHOLE = 2**53

Scalar: TypeAlias = bool | int | float | str | None

Dimension: TypeAlias = FloatDistribution | IntDistribution | CategoricalDistribution
"""What one hyperparameter is drawn from."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class _FloatEntry(_Entry):
    """Real numbers from `low` to `high`, on a logarithmic scale or in steps if asked for."""

    type: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _spans_a_range(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step)
        return self

    @property
    def dimension(self) -> FloatDistribution:
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@final
class _IntEntry(_Entry):
    """Whole numbers from `low` to `high`, both included."""

    type: Literal["int"]
    low: int = Field(ge=-_WHOLE, le=_WHOLE)
    high: int = Field(ge=-_WHOLE, le=_WHOLE)
    log: bool = False
    step: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _spans_a_range(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step if self.step != 1 else None)
        return self

    @property
    def dimension(self) -> IntDistribution:
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)


@final
class _ChoiceEntry(_Entry):
    """One of several unordered values."""

    type: Literal["categorical"]
    choices: tuple[Scalar, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        # Trials are kept as JSON, which has no such numbers.
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.choices):
            raise ValueError(f"`choices` must be finite, but got {list(self.choices)}.")
        if len({(type(value), value) for value in self.choices}) != len(self.choices):
            raise ValueError(f"`choices` must differ, but got {list(self.choices)}.")
        return self

    @property
    def dimension(self) -> CategoricalDistribution:
        return CategoricalDistribution(self.choices)


_AnyEntry: TypeAlias = Annotated[
    _FloatEntry | _IntEntry | _ChoiceEntry, Field(discriminator="type")
]
_READER: TypeAdapter[_FloatEntry | _IntEntry | _ChoiceEntry] = TypeAdapter(_AnyEntry)

KINDS = ("float", "int", "categorical")
"""What `type` may be in an entry."""


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not low < high:
        raise ValueError(f"`low < high` must hold, but got low={low:g}, high={high:g}.")
    if log and low <= 0:
        raise ValueError(f"`low > 0` must hold on a logarithmic scale, but got low={low:g}.")
    if not math.isfinite(high - low):
        raise ValueError(f"the range must be finite, but got low={low:g}, high={high:g}.")
    if log and step is not None:
        raise ValueError("`log` and `step` exclude each other.")
    if step is not None:
        steps = (high - low) / step
        if steps > _WHOLE:
            raise ValueError(f"`step` is too small for this range: got step={step:g}.")
        if not math.isclose(steps, round(steps), rel_tol=0, abs_tol=1e-6) or round(steps) < 1:
            raise ValueError(
                f"`step` must divide the range, but got low={low:g}, high={high:g}, step={step:g}."
            )


def read_dimension(entry: object) -> Dimension:
    """Return what an entry under `search:` of a space's file says.

    Raises:
        ValidationError: it breaks a rule.
    """
    return _READER.validate_python(entry).dimension


def as_entry(dimension: Dimension) -> dict[str, Any]:
    """Return the entry that `read_dimension` reads as this, with every key."""
    if isinstance(dimension, CategoricalDistribution):
        return {"type": "categorical", "choices": dimension.choices}
    return {
        "type": "int" if isinstance(dimension, IntDistribution) else "float",
        "low": dimension.low,
        "high": dimension.high,
        "log": dimension.log,
        "step": dimension.step,
    }


def extremes(dimension: Dimension) -> dict[str, Scalar]:
    """Return the values at the ends, by the YAML key that gives them; of a choice, all of them."""
    if isinstance(dimension, CategoricalDistribution):
        return {f"choices.{index}": value for index, value in enumerate(dimension.choices)}
    return {"low": dimension.low, "high": dimension.high}


def corners(search: Mapping[str, Dimension]) -> Iterator[tuple[str, str, dict[str, Scalar]]]:
    """Yield values that hold every end of every range once, the other ranges at their first.

    Before them stand the hyperparameter that is at an end and the YAML key that gives it.
    """
    lows = {key: next(iter(extremes(dimension).values())) for key, dimension in search.items()}
    for key, dimension in search.items():
        for end, value in extremes(dimension).items():
            yield key, end, {**lows, key: value}


def draw(dimension: Dimension, source: random.Random) -> Any:
    """Return a value of a dimension, without a sampler."""
    if isinstance(dimension, CategoricalDistribution):
        return source.choice(dimension.choices)
    low, high = dimension.low, dimension.high
    value: float
    if dimension.log:
        value = math.exp(source.uniform(math.log(low), math.log(high)))
    elif dimension.step is not None:
        value = low + source.randint(0, round((high - low) / dimension.step)) * dimension.step
    else:
        value = source.uniform(low, high)
    if isinstance(dimension, IntDistribution):
        value = round(value)
    return min(max(value, low), high)


def suggest(trial: BaseTrial, name: str, dimension: Dimension) -> Any:
    """Return the value that a trial's sampler proposes."""
    if isinstance(dimension, CategoricalDistribution):
        return trial.suggest_categorical(name, dimension.choices)
    propose = trial.suggest_int if isinstance(dimension, IntDistribution) else trial.suggest_float
    return propose(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def as_taken_by(field: FieldInfo, choice: CategoricalDistribution) -> CategoricalDistribution:
    """Return a choice with numbers where the editor's field reads text as such."""
    reader: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)

    def read(value: Scalar) -> Scalar:
        if isinstance(value, str):
            with suppress(ValidationError):
                taken = reader.validate_python(value)
                return taken if isinstance(taken, int | float) else value
        return value

    return CategoricalDistribution(tuple(read(value) for value in choice.choices))
