"""Tasks: what an edit should do, what it is judged by, and the reader of their folders."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar, final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tuner.editing.constraint import Constraints
from tuner.errors import ConfigError, TaskError, unknown_name
from tuner.files.atomic_file import whole_folder, write_text
from tuner.files.json_file import JsonError, parse_json
from tuner.files.paths import absolute, is_spelled_as_path
from tuner.files.shipped import shipped_folder
from tuner.files.text_file import exists, is_file, is_folder, read_lines
from tuner.files.yaml_file import dump_yaml, load_yaml
from tuner.validation import describe_problems, show_path, show_value


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


class _Card(BaseModel):
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
class Task(_Card):
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


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks that travel with tuner."""
    folder = shipped_folder("datasets")
    return tuple(sorted(card.parent.name for card in folder.glob("*/task.yaml")))


def load_task(name_or_path: str | Path, edits: int | None = None) -> Task:
    """Return the task of that name among the shipped ones, or in that folder.

    `edits` is how many edits are made at once, instead of what the card says.

    Raises:
        TaskError: a row is malformed, splits share an example, or a file is missing.
        ConfigError: there is no such task, its card is malformed, or it has fewer edits.
    """
    folder = find_task(name_or_path)
    card = load_yaml(folder / "task.yaml", _Card)
    val, test = _load_split(folder / "val", card), _load_split(folder / "test", card)
    train = _load_split(folder / "train", card) if _is_there(folder / "train") else None
    try:
        task = Task(**card.model_dump(), val=val, test=test, train=train)
    except ValidationError as error:
        raise TaskError(f"{show_path(folder)}: {describe_problems(error)}") from None
    _refuse_leaks(folder, task)
    return task.with_edits(edits)


def find_task(name_or_path: str | Path) -> Path:
    """Return the folder of a task.

    Raises:
        ConfigError: there is no such task.
    """
    resolved = resolved_task(str(name_or_path))
    shipped = not os.path.isabs(resolved)
    folder = shipped_folder("datasets") / resolved if shipped else absolute(name_or_path)
    if os.path.lexists(folder / "task.yaml"):
        return folder
    if shipped:
        raise unknown_name("task (nor a folder with a task.yaml)", resolved, task_names())
    state = "has no task.yaml" if os.path.exists(folder) else "does not exist"
    raise ConfigError(f"No task is in {show_path(folder)}: the folder {state}.")


def resolved_task(name: str, start: Path | None = None) -> str:
    """Return the absolute path of a task's folder, from `start` or else the working directory.

    Only a plain name, of which there is no such folder with a card, is that of a shipped task.
    """
    path = absolute(name, start)
    is_path = "/" in name or is_spelled_as_path(name) or os.path.lexists(path / "task.yaml")
    return str(path) if is_path else name


def _load_split(folder: Path, card: _Card) -> Split:
    judged = f"the rule {card.success}" if card.success.needs_contrast else None
    if card.loss.needs_contrast:
        judged = f"the loss {card.loss}"
    neighbours = folder / "neighbours.jsonl"
    if _is_there(neighbours) and card.success is SuccessCriterion.THRESHOLD:
        raise TaskError(
            f"{neighbours}: neighbours are judged by any rule but threshold, which is this "
            "task's. Set `success` in task.yaml, or take the file away."
        )
    canonical = _example_set(folder / "canonical.jsonl", card.loss, judged)
    ood = _example_set(folder / "ood.jsonl", card.loss, judged)
    hard_negatives = _examples(folder / "hard_negatives.jsonl", None)
    near = _examples(neighbours, judged)
    return Split(
        canonical=canonical,
        ood=ood,
        # The published hard negatives are judged by the loss of their target alone.
        hard_negatives=ExampleSet(loss=LossKind.LIKELIHOOD, rows=hard_negatives),
        related=_optional_rows(folder / "related.jsonl", Passage),
        neighbours=near,
        generations=_optional_rows(folder / "generations.jsonl", GenerationPrompt),
        facts=_unjudged(
            folder / "facts.jsonl",
            {row.prompt for row in (*canonical.rows, *ood.rows, *hard_negatives, *near)},
        ),
    )


def _is_there(path: Path) -> bool:
    """Whether there is anything of that name, if only something that cannot be read."""
    return os.path.lexists(path)


def _example_set(path: Path, loss: LossKind, contrast_for: str | None) -> ExampleSet:
    rows = tuple(row for _, row in _read_examples(path, contrast_for))
    if not rows:
        raise TaskError(f"{path}: at least one row is needed.")
    return ExampleSet(loss=loss, rows=rows)


def _examples(path: Path, contrast_for: str | None) -> tuple[Example, ...]:
    if not _is_there(path):
        return ()
    return tuple(row for _, row in _read_examples(path, contrast_for))


def _unjudged(path: Path, judged: Set[str]) -> tuple[Example, ...]:
    """Return the facts of a file. They are trained on, so none may ask what a judged row asks."""
    if not _is_there(path):
        return ()
    facts = []
    for number, row in _read_examples(path, None):
        if row.prompt in judged:
            raise TaskError(
                f"{path}:{number}: editors may train on facts, but a judged row of this split has "
                f"the same prompt: {show_value(row.prompt)}."
            )
        facts.append(row)
    return tuple(facts)


def _read_examples(path: Path, contrast_for: str | None) -> Iterator[tuple[int, Example]]:
    """Yield line and row; `contrast_for` names what needs each row to have a contrast."""
    for number, row in read_rows(path, Example):
        if contrast_for is not None and row.contrast is None:
            raise TaskError(f"{path}:{number}: {contrast_for} needs a `contrast`.")
        if row.subject is not None and row.subject not in row.prompt:
            raise TaskError(
                f"{path}:{number}: the subject {show_value(row.subject)} must stand in the prompt."
            )
        yield number, row


_Row = TypeVar("_Row", bound=BaseModel)


def _optional_rows(path: Path, into: type[_Row]) -> tuple[_Row, ...]:
    return tuple(row for _, row in read_rows(path, into)) if _is_there(path) else ()


def read_rows(path: Path, into: type[_Row]) -> Iterator[tuple[int, _Row]]:
    """Yield line and row of a JSONL file, without its empty lines.

    Raises:
        TaskError: the file is missing or cannot be read, or a row is malformed.
    """
    for number, line in read_lines(path, TaskError):
        if not line.strip():
            continue
        try:
            yield number, into.model_validate(parse_json(line))
        except JsonError as error:
            raise TaskError(f"{show_path(path)}:{number}: not valid JSON: {error}.") from None
        except ValidationError as error:
            raise TaskError(f"{show_path(path)}:{number}: {describe_problems(error)}") from None


_SPLIT_WORDS = {"val": "validation", "test": "test", "train": "training"}


def _refuse_leaks(folder: Path, task: Task) -> None:
    splits = {"val": task.val, "test": task.test} | ({"train": task.train} if task.train else {})
    for part in ("canonical", "ood"):
        seen: dict[tuple[str, str], str] = {}
        for name, split in splits.items():
            rows = getattr(split, part).rows
            _refuse_seen(folder / name, part, rows, seen)
            seen |= {(row.prompt, row.target): _SPLIT_WORDS[name] for row in rows}


def _refuse_seen(
    folder: Path, part: str, rows: Sequence[Example], seen: Mapping[tuple[str, str], str]
) -> None:
    for number, row in enumerate(rows, start=1):
        if (row.prompt, row.target) in seen:
            raise TaskError(
                f"{folder / part}.jsonl:{number}: this row stands in the "
                f"{seen[row.prompt, row.target]} split too: {show_value(row.prompt)}."
            )


_NEEDED = ("canonical", "ood")


def save_task(task: Task, folder: Path) -> None:
    """Write a task as a folder that `load_task` reads; a new one is whole or not there at all.

    Raises:
        TaskError: the folder exists and holds something else.
        DiskError: it cannot be written.
    """
    if exists(folder) and not is_folder(folder):
        raise TaskError(f"{folder} is a file; choose another folder.")
    if not exists(folder) or not any(folder.iterdir()):
        with whole_folder(folder) as draft:
            _write_task(task, draft)
    elif is_file(folder / "task.yaml"):
        _write_task(task, folder)
    else:
        raise TaskError(f"{folder} exists and is not a task; choose another folder.")


def _write_task(task: Task, folder: Path) -> None:
    splits = {"val": task.val, "test": task.test} | ({"train": task.train} if task.train else {})
    for name, split in splits.items():
        parts = {
            "canonical": split.canonical.rows,
            "ood": split.ood.rows,
            "hard_negatives": split.hard_negatives.rows,
            "related": split.related,
            "neighbours": split.neighbours,
            "generations": split.generations,
            "facts": split.facts,
        }
        for part, rows in parts.items():
            path = folder / name / f"{part}.jsonl"
            if not rows and part not in _NEEDED:
                path.unlink(missing_ok=True)
                continue
            lines = (row.model_dump_json(exclude_defaults=True) for row in rows)
            write_text(path, "".join(f"{line}\n" for line in lines))
    card = task.model_dump(mode="json", exclude={"val", "test", "train"})
    write_text(folder / "task.yaml", dump_yaml(card))
