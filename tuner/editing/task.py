"""Tasks: what an edit should do, and what it is judged by."""

import hashlib
from enum import StrEnum
from functools import cached_property
from typing import Self, final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tuner.editing.constraint import Constraints
from tuner.errors import ConfigError
from tuner.validation import describe_problems, show_value


class LossKind(StrEnum):
    """What an edit should do to the target's loss.

    Source: Hewitt et al. 2024 (arXiv:2402.06155); their names in brackets.
    """

    LIKELIHOOD = "likelihood"  # make the target likely [good]
    SUPPRESS = "suppress"  # make the target unlikely [bad]
    BALANCE = "balance"  # make target and contrast equally likely [balance]
    PREFER = "prefer"  # make the target likelier than the contrast [good-v-bad]

    @property
    def needs_contrast(self) -> bool:
        """Whether rows must carry a second continuation."""
        return self in (LossKind.BALANCE, LossKind.PREFER)


class SuccessCriterion(StrEnum):
    """When a row counts as a success."""

    THRESHOLD = "threshold"  # its loss meets the task's threshold, in nats
    LIKELIER = "likelier"  # the target is likelier per token than the contrast (CounterFact)
    TOKENS = "tokens"  # its share of target tokens that are the most likely ones (zsRE)
    SEQUENCE = "sequence"  # every target token is the most likely one (SERAC's questions)
    SENTIMENT = "sentiment"  # how much it takes the target's side on its topic (SERAC's dialogue)

    @property
    def needs_contrast(self) -> bool:
        """Whether rows must carry a second continuation."""
        return self in (SuccessCriterion.LIKELIER, SuccessCriterion.SENTIMENT)


def _is_empty(value: object) -> bool:
    """Whether an optional field holds nothing; such fields leave files and hashes as they were."""
    return value is None or value == ()


@final
class Example(BaseModel):
    """A prompt and the continuation that an edit is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    target: str = Field(min_length=1, description="The continuation, with its leading space.")
    contrast: str | None = Field(default=None, min_length=1)
    subject: str | None = Field(default=None, description="What the fact is about.")
    paraphrases: tuple[str, ...] = ()
    record: str | None = Field(
        default=None,
        min_length=1,
        exclude_if=_is_empty,
        description="The published record that the row belongs to; rows are averaged within it.",
    )


@final
class Passage(BaseModel):
    """A piece of text that is judged as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1)


@final
class GenerationPrompt(BaseModel):
    """A prompt that the model goes on from by itself, and texts that show what it should say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    record: str = Field(min_length=1)
    references: tuple[str, ...] = ()


@final
class ExampleSet(BaseModel):
    """Examples that share a loss kind: what an editor is given, or a row set it is judged on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossKind
    rows: tuple[Example, ...]

    @model_validator(mode="after")
    def _contrast_where_needed(self) -> Self:
        for number, row in enumerate(self.rows, start=1):
            if self.loss.needs_contrast and row.contrast is None:
                raise ValueError(f"row {number}: the loss {self.loss} needs a contrast.")
        return self

    def __len__(self) -> int:
        return len(self.rows)


@final
class Split(BaseModel):
    """One half of a task. Validation and test share no example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    canonical: ExampleSet
    ood: ExampleSet
    hard_negatives: ExampleSet
    related: tuple[Passage, ...] = ()
    neighbours: tuple[Example, ...] = Field(
        default=(),
        exclude_if=_is_empty,
        description="Facts near the edited ones; the target is the true object, which must stay.",
    )
    generations: tuple[GenerationPrompt, ...] = Field(
        default=(),
        exclude_if=_is_empty,
        description="Prompts whose free continuations are judged for fluency and consistency.",
    )
    facts: tuple[Example, ...] = Field(
        default=(),
        exclude_if=_is_empty,
        description="True facts that editors may train on; they are never judged.",
    )

    def limited(self, edits: int | None) -> Self:
        """Return the split with the first `edits` edits and the rows of their records.

        Rows without a record belong to no edit and stay. None is the split as it is.
        """
        if edits is None or edits == len(self.canonical):
            return self
        kept = {row.record for row in self.canonical.rows[:edits]} | {None}

        def of_kept(rows: ExampleSet) -> ExampleSet:
            some = tuple(row for row in rows.rows if row.record in kept)
            return ExampleSet(loss=rows.loss, rows=some)

        return type(self)(
            canonical=ExampleSet(loss=self.canonical.loss, rows=self.canonical.rows[:edits]),
            ood=of_kept(self.ood),
            hard_negatives=of_kept(self.hard_negatives),
            related=self.related,
            neighbours=tuple(row for row in self.neighbours if row.record in kept),
            generations=tuple(row for row in self.generations if row.record in kept),
            facts=self.facts,
        )


class TaskCard(BaseModel):
    """`task.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    loss: LossKind
    success: SuccessCriterion = Field(
        default=SuccessCriterion.THRESHOLD,
        exclude_if=lambda rule: rule is SuccessCriterion.THRESHOLD,
        description="When a row succeeds.",
    )
    threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        exclude_if=_is_empty,
        description="A row succeeds at or below this loss, in nats; for the rule threshold alone.",
    )
    source: str
    licence: str
    constraints: Constraints = Field(
        default=(),
        exclude_if=_is_empty,
        description="What an edit must keep beside the deviation budget.",
    )
    simultaneous_edits: int | None = Field(
        default=None,
        gt=0,
        exclude_if=_is_empty,
        description="How many edits of a split are made at once, the first ones; by default all.",
    )

    @model_validator(mode="after")
    def _rule_has_what_it_needs(self) -> Self:
        if (self.success is SuccessCriterion.THRESHOLD) != (self.threshold is not None):
            raise ValueError(
                "The rule `success: threshold` needs a `threshold`, and no other rule has one; "
                f"got success: {self.success} and threshold: {self.threshold}."
            )
        if self.success is not SuccessCriterion.THRESHOLD and self.loss is not LossKind.LIKELIHOOD:
            raise ValueError(
                f"`success: {self.success}` goes with `loss: likelihood`, but got {self.loss}."
            )
        return self


@final
class Task(TaskCard):
    """What an edit should do, and what it is judged by."""

    val: Split
    test: Split
    train: Split | None = Field(
        default=None,
        exclude_if=_is_empty,
        description="Other edits with rows in and out of their scope, for learned editors; never "
        "judged.",
    )

    @model_validator(mode="after")
    def _has_the_edits_that_are_made(self) -> Self:
        if self.simultaneous_edits is not None:
            for name, split in (("val", self.val), ("test", self.test)):
                _check_pool(name, split, self.simultaneous_edits)
        return self

    def with_edits(self, count: int | None) -> Self:
        """Return the task with another number of edits made at once; None leaves it as it is.

        Raises:
            ConfigError: a split has fewer edits, or its rows do not say which edit they are of.
        """
        if count is None or count == self.simultaneous_edits:
            return self
        if count < 1:
            raise ConfigError(f"At least one edit must be made at once, but got {count}.")
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self)(**fields | {"simultaneous_edits": count})
        except ValidationError as error:
            raise ConfigError(
                f"{self.name} with {count} edits at once: {describe_problems(error)}"
            ) from None

    @cached_property
    def hash(self) -> str:
        """A hash of everything that the task holds."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _check_pool(name: str, split: Split, edits: int) -> None:
    """Refuse a split from which that many edits cannot be taken with all of their rows."""
    if edits > len(split.canonical):
        raise ValueError(
            f"{edits} edits at once need as many canonical rows, but {name} has "
            f"{len(split.canonical)}."
        )
    records = [row.record for row in split.canonical.rows]
    if None in records or len(set(records)) < len(records):
        raise ValueError(
            f"{name}: where some edits of a split are made, each canonical row needs a `record` "
            "of its own."
        )
    for part, rows in (("ood", split.ood.rows), ("hard_negatives", split.hard_negatives.rows)):
        astray = next((row for row in rows if row.record not in records), None)
        if astray is not None:
            raise ValueError(
                f"{name}/{part}: each row needs the `record` of an edit, but "
                f"{show_value(astray.prompt)} has {show_value(astray.record)}."
            )
    if {row.record for row in split.ood.rows} != set(records):
        raise ValueError(f"{name}/ood: each edit needs a row in its scope.")
