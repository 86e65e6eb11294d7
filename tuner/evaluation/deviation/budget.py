"""The deviation budget, and what a measurement says about it."""

from decimal import Decimal
from enum import StrEnum
from math import isfinite
from typing import Self, final

from pydantic import BaseModel, ConfigDict, Field, field_validator

LEANING = 1.64
LEAST_TOKENS_FOR_CERTIFICATE = 32_000
"""On less text no certificate says that a budget is kept."""


def epsilon_name(epsilon: float) -> str:
    """Return a budget as the name of its folder, and as users may type it: `0.001`, `1e-05`.

    It is the shortest text that reads back as this very number, so that each budget has a name of
    its own.
    """
    return repr(float(epsilon))


def epsilon_of_name(name: str) -> float | None:
    """Return the budget that a folder's name stands for; None for any other name."""
    try:
        return float(name)
    except ValueError:
        return None


def epsilon_label(epsilon: float) -> str:
    """Return a budget as part of a name that sorts and is legal in MLflow: `eps_1e-04`.

    Like `epsilon_name` it reads back as this very number.
    """
    mantissa, exponent = f"{Decimal(epsilon_name(epsilon)):e}".split("e")
    return f"eps_{mantissa}e{int(exponent):+03d}"


def epsilon_of_label(label: str) -> float:
    """Return the budget that a label names."""
    return float(label.removeprefix("eps_"))


class Verdict(StrEnum):
    """Whether a deviation keeps a budget, as far as the text read so far can tell."""

    WITHIN = "within"
    OVER = "over"
    UNRESOLVED = "unresolved"


@final
class Deviation(BaseModel):
    """The relative rise of the loss on general text, with what it was estimated from.

    `lower` and `upper` bound the true deviation of the text's source at every moment of the
    evaluation together (a confidence sequence), so stopping early does not spoil them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: float
    standard_error: float
    lower: float
    upper: float
    tokens: int = Field(ge=0, description="Predicted tokens that were read.")
    gradient_tokens: int = Field(
        default=0,
        ge=0,
        description="Predicted tokens whose mean gradient gave the linear part; 0 is none.",
    )
    confidence: float = Field(gt=0, lt=1)

    def verdict(self, epsilon: float) -> Verdict:
        """Return whether the true deviation is surely under or surely over `epsilon`."""
        if self.upper <= epsilon:
            return Verdict.WITHIN
        if self.lower > epsilon:
            return Verdict.OVER
        return Verdict.UNRESOLVED

    def leaning(self, epsilon: float) -> Verdict:
        """Return what one look at the estimate suggests, at 1.64 standard errors.

        Enough to steer a search; it is not a verdict, since a search looks many times.
        """
        margin = LEANING * self.standard_error
        if self.estimate + margin <= epsilon:
            return Verdict.WITHIN
        if self.estimate - margin > epsilon:
            return Verdict.OVER
        return Verdict.UNRESOLVED

    def probably_within(self, epsilon: float) -> bool:
        """Return whether the estimate, with one standard error on top, is under `epsilon`.

        What a search goes by: a sure verdict on every candidate would cost more text than the
        few winners' certificates do, and those are read from fresh text.
        """
        return self.upper <= epsilon or self.estimate + self.standard_error <= epsilon

    @classmethod
    def none(cls, confidence: float) -> Self:
        """Return the deviation of the base model from itself: zero, known without reading."""
        return cls(
            estimate=0.0, standard_error=0.0, lower=0.0, upper=0.0, tokens=0, confidence=confidence
        )


# Of a loss that is summed in double precision, no smaller share can be told from nothing.
_FINEST = 1e-15


@final
class Budget(BaseModel):
    """How far the loss on general text may rise, and how surely we want to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilons: tuple[float, ...] = Field(
        default=(1e-3, 1e-4, 1e-5),
        min_length=1,
        description="Relative rises of the loss on general text that are allowed.",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Confidence of each verdict within a trial."
    )

    @field_validator("epsilons")
    @classmethod
    def _sorted_and_positive(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        if any(not _FINEST <= epsilon < 1 for epsilon in epsilons):
            raise ValueError(
                f"{_FINEST:g} <= epsilon < 1 must hold for every budget, but got {epsilons}."
            )
        if len(set(epsilons)) != len(epsilons):
            raise ValueError(f"Budgets must differ, but got {epsilons}.")
        return tuple(sorted(epsilons, reverse=True))


@final
class Certificate(BaseModel):
    """The statement that a delta keeps, or breaks, a budget on fresh text.

    It names by their hashes what it is about: the delta, the base model and the text. A hash is
    not a signature: who doubts the maker of a bundle certifies it anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float
    verdict: Verdict
    deviation: Deviation
    corpus: str = Field(description="Where the text came from.")
    corpus_hash: str
    delta_hash: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Hash of the delta; None in certificates of old, which name none.",
    )
    base_fingerprint: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Hash of the base model; None in certificates of old, which name none.",
    )

    @property
    def holds(self) -> bool:
        """Whether the budget is surely kept."""
        return self.verdict is Verdict.WITHIN

    def doubt(self, delta_hash: str, base_fingerprint: str) -> str | None:
        """Return why it says nothing sure of this delta of this base, or None if it does."""
        if self.delta_hash is None or self.base_fingerprint is None:
            return "it does not name the delta and the base model that it was made for"
        if self.delta_hash != delta_hash:
            return "it was made for another delta than this one"
        if self.base_fingerprint != base_fingerprint:
            return "it was made with another base model than this delta's"
        return self._inconsistency()

    def contradicts(self, other: "Certificate") -> bool:
        """Return whether both cannot be true of the same delta."""
        pairs = ((self, other), (other, self))
        return any(
            one.verdict is Verdict.WITHIN
            and two.verdict is Verdict.OVER
            and one.epsilon <= two.epsilon
            for one, two in pairs
        )

    def _inconsistency(self) -> str | None:
        found = self.deviation
        figures = (found.lower, found.estimate, found.upper, found.standard_error)
        if not all(map(isfinite, figures)) or not found.lower <= found.estimate <= found.upper:
            return "its figures do not fit together"
        follows = found.verdict(self.epsilon)
        if self.verdict is Verdict.WITHIN and follows is not Verdict.WITHIN:
            return f"its figures say {follows.value}, not {self.verdict.value}"
        if self.verdict is Verdict.WITHIN and found.tokens < LEAST_TOKENS_FOR_CERTIFICATE:
            return (
                f"it rests on {found.tokens:,} tokens, and no verdict `within` can rest on fewer "
                f"than {LEAST_TOKENS_FOR_CERTIFICATE:,}"
            )
        # Where the edited model's loss is not a number, nothing was measured.
        if self.verdict is Verdict.OVER and found.tokens and follows is not Verdict.OVER:
            return f"its figures say {follows.value}, not {self.verdict.value}"
        return None
