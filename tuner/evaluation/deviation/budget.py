"""The deviation budget, and what a measurement says about it."""

from collections.abc import Iterable
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


def joint(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on several limits together: over one of them is over."""
    seen = set(verdicts)
    if Verdict.OVER in seen:
        return Verdict.OVER
    return Verdict.UNRESOLVED if Verdict.UNRESOLVED in seen else Verdict.WITHIN


@final
class Divergence(BaseModel):
    """The mean KL(base‖edited) per predicted token of general text, in nats.

    It bounds change, where deviation bounds harm: an edit that improves some text as much as it
    spoils other text has no deviation, but it diverges. `lower` and `upper` are a confidence
    sequence, as those of `Deviation`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: float
    standard_error: float
    lower: float
    upper: float
    tokens: int = Field(ge=0, description="Predicted tokens that were read.")
    limit: float | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="The most that the budget allows; None where it is only reported.",
    )

    def verdict(self) -> Verdict:
        """Return whether the true divergence is surely under or surely over its limit, if any."""
        if self.limit is None or self.upper <= self.limit:
            return Verdict.WITHIN
        return Verdict.OVER if self.lower > self.limit else Verdict.UNRESOLVED

    def leaning(self) -> Verdict:
        """Return what one look at the estimate suggests, as `Deviation.leaning`."""
        if self.limit is None or self.estimate + LEANING * self.standard_error <= self.limit:
            return Verdict.WITHIN
        over = self.estimate - LEANING * self.standard_error > self.limit
        return Verdict.OVER if over else Verdict.UNRESOLVED

    def probably_within(self) -> bool:
        """Return whether the estimate, with one standard error on top, is under the limit."""
        return self.limit is None or (
            self.upper <= self.limit or self.estimate + self.standard_error <= self.limit
        )


@final
class Deviation(BaseModel):
    """The relative rise of the loss on general text, with what it was estimated from.

    `lower` and `upper` bound the true deviation of the text's source at every moment of the
    evaluation together (a confidence sequence), so stopping early does not spoil them. What a
    budget bounds beside the rise, a fall or the divergence, is judged with it.
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

    two_sided: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Whether a fall of the loss counts as much as a rise.",
    )
    divergence: Divergence | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="How far the predictions moved; None in records from before it was measured.",
    )

    def verdict(self, epsilon: float) -> Verdict:
        """Return whether the edit is surely within every limit, or surely over one of them."""
        return joint(
            (self.rise_verdict(epsilon), *([self.divergence.verdict()] if self.divergence else ()))
        )

    def leaning(self, epsilon: float) -> Verdict:
        """Return what one look at the estimates suggests, at 1.64 standard errors.

        Enough to steer a search; it is not a verdict, since a search looks many times.
        """
        return joint(
            (self.rise_leaning(epsilon), *([self.divergence.leaning()] if self.divergence else ()))
        )

    def rise_verdict(self, epsilon: float) -> Verdict:
        """Return whether the true deviation is surely under or surely over `epsilon`."""
        return self._placed(self.lower, self.upper, epsilon)

    def rise_leaning(self, epsilon: float) -> Verdict:
        """Return what one look at the deviation alone suggests."""
        margin = LEANING * self.standard_error
        return self._placed(self.estimate - margin, self.estimate + margin, epsilon)

    def _placed(self, lower: float, upper: float, epsilon: float) -> Verdict:
        if lower > epsilon or (self.two_sided and upper < -epsilon):
            return Verdict.OVER
        within = upper <= epsilon and (not self.two_sided or lower >= -epsilon)
        return Verdict.WITHIN if within else Verdict.UNRESOLVED

    def probably_within(self, epsilon: float) -> bool:
        """Return whether the estimate, with one standard error on top, is under `epsilon`.

        What a search goes by: a sure verdict on every candidate would cost more text than the
        few winners' certificates do, and those are read from fresh text.
        """
        if self.divergence is not None and not self.divergence.probably_within():
            return False
        if self.rise_verdict(epsilon) is Verdict.WITHIN:
            return True
        return self.size + self.standard_error <= epsilon

    def appears_within(self, epsilon: float) -> bool:
        """Return whether the bare estimates are under their limits, as published rules judge."""
        return self.used(epsilon) < 1

    @property
    def size(self) -> float:
        """What is held against a budget: the rise, or the rise or fall where both count."""
        return abs(self.estimate) if self.two_sided else self.estimate

    def used(self, epsilon: float) -> float:
        """Return the share of the budget that the bare estimates use; over 1 is over."""
        share = self.size / epsilon
        if self.divergence is None or self.divergence.limit is None:
            return share
        return max(share, self.divergence.estimate / self.divergence.limit)

    def load(self, epsilon: float) -> float:
        """Return how much of a budget an edit uses, as a deviation with its standard error.

        A divergence with a limit counts by its share of that limit. What grows like αa + α²b in
        the strength of the edit, since both parts do.
        """
        rise = self.size + self.standard_error
        if self.divergence is None or self.divergence.limit is None:
            return rise
        used = (self.divergence.estimate + self.divergence.standard_error) / self.divergence.limit
        return max(rise, epsilon * used)

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
    """How far general text may change, and how surely we want to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilons: tuple[float, ...] = Field(
        default=(1e-3, 1e-4, 1e-5),
        min_length=1,
        description="Relative rises of the loss on general text that are allowed.",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Confidence of each verdict within a trial."
    )
    two_sided: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Count a fall of the loss as much as a rise.",
    )
    divergence: float | None = Field(
        default=None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="The most that predictions may move, whatever the loss does: the mean "
        "KL(base‖edited) per token of general text, in nats.",
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
    form: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="The form that was judged: `adapter`, `merged:` and a precision, or `beside "
        "the model`; None in certificates of old.",
    )
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
        deviation = self.deviation
        figures = (deviation.lower, deviation.estimate, deviation.upper, deviation.standard_error)
        if (
            not all(map(isfinite, figures))
            or not deviation.lower <= deviation.estimate <= deviation.upper
        ):
            return "its figures do not fit together"
        follows = deviation.verdict(self.epsilon)
        if self.verdict is Verdict.WITHIN and follows is not Verdict.WITHIN:
            return f"its figures say {follows.value}, not {self.verdict.value}"
        if self.verdict is Verdict.WITHIN and deviation.tokens < LEAST_TOKENS_FOR_CERTIFICATE:
            return (
                f"it rests on {deviation.tokens:,} tokens, and no verdict `within` can rest on "
                f"fewer than {LEAST_TOKENS_FOR_CERTIFICATE:,}"
            )
        # Where the edited model's loss is not a number, nothing was measured.
        if self.verdict is Verdict.OVER and deviation.tokens and follows is not Verdict.OVER:
            return f"its figures say {follows.value}, not {self.verdict.value}"
        return None
