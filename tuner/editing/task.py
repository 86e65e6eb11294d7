"""Tasks: what an edit should do, what it is judged by, and the reader of their folders."""

import hashlib
import json
from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuner.editing.constraint import Constraints
from tuner.errors import TaskError, unknown_name
from tuner.shipped import shipped_folder
from tuner.yaml_file import describe_problem, load_yaml


class LossKind(StrEnum):
    """What an edit should do to the target's loss, and when a row counts as a success.

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


@final
class Example(BaseModel):
    """A prompt and the continuation that an edit is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    target: str = Field(min_length=1, description="The continuation, with its leading space.")
    contrast: str | None = Field(default=None, min_length=1)
    subject: str | None = Field(default=None, description="What the fact is about.")
    paraphrases: tuple[str, ...] = ()


@final
class Passage(BaseModel):
    """A piece of text that is judged as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1)


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


@final
class Task(BaseModel):
    """What an edit should do, and what it is judged by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    loss: LossKind
    threshold: float = Field(description="A row succeeds at or below this loss, in nats.")
    source: str
    licence: str
    constraints: Constraints = Field(
        default=(), description="What an edit must keep beside the deviation budget."
    )
    val: Split
    test: Split

    @cached_property
    def hash(self) -> str:
        """A hash of everything that the task holds."""
        # Tasks without constraints keep the hash that they had before there were any.
        absent = None if self.constraints else {"constraints"}
        return hashlib.sha256(self.model_dump_json(exclude=absent).encode()).hexdigest()


class _Card(BaseModel):
    """`task.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    loss: LossKind
    threshold: float = Field(allow_inf_nan=False)
    source: str
    licence: str
    constraints: Constraints = ()


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks that travel with tuner."""
    folder = shipped_folder("datasets")
    return tuple(sorted(card.parent.name for card in folder.glob("*/task.yaml")))


def load_task(name_or_path: str | Path) -> Task:
    """Return the task of that name among the shipped ones, or in that folder.

    Raises:
        TaskError: a row is malformed, splits share an example, or a file is missing.
        ConfigError: there is no such task, or its card is malformed.
    """
    folder = find_task(name_or_path)
    card = load_yaml(folder / "task.yaml", _Card)
    task = Task(
        **card.model_dump(),
        val=_load_split(folder / "val", card.loss),
        test=_load_split(folder / "test", card.loss),
    )
    _refuse_leaks(folder, task)
    return task


def find_task(name_or_path: str | Path) -> Path:
    """Return the folder of a task.

    Raises:
        ConfigError: there is no such task.
    """
    for folder in (Path(name_or_path), shipped_folder("datasets") / str(name_or_path)):
        if (folder / "task.yaml").is_file():
            return folder
    raise unknown_name("task (nor a folder with a task.yaml)", str(name_or_path), task_names())


def _load_split(folder: Path, loss: LossKind) -> Split:
    canonical = _read_examples(folder / "canonical.jsonl", loss)
    ood = _read_examples(folder / "ood.jsonl", loss)
    hard = folder / "hard_negatives.jsonl"
    related = folder / "related.jsonl"
    return Split(
        canonical=canonical,
        ood=ood,
        # The published hard negatives are judged by the loss of their target alone.
        hard_negatives=_read_examples(hard, LossKind.LIKELIHOOD)
        if hard.is_file()
        else ExampleSet(loss=LossKind.LIKELIHOOD, rows=()),
        related=tuple(row for _, row in _read_rows(related, Passage)) if related.is_file() else (),
    )


def _read_examples(path: Path, loss: LossKind) -> ExampleSet:
    rows = []
    for number, row in _read_rows(path, Example):
        if loss.needs_contrast and row.contrast is None:
            raise TaskError(f"{path}:{number}: the loss {loss} needs a `contrast`.")
        if row.subject is not None and row.subject not in row.prompt:
            raise TaskError(
                f"{path}:{number}: the subject {row.subject!r} must stand in the prompt."
            )
        rows.append(row)
    if not rows:
        raise TaskError(f"{path}: at least one row is needed.")
    return ExampleSet(loss=loss, rows=tuple(rows))


_Row = TypeVar("_Row", bound=BaseModel)


def _read_rows(path: Path, into: type[_Row]) -> Iterator[tuple[int, _Row]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise TaskError(f"{path}: this file is needed and is missing.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, into.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise TaskError(f"{path}:{number}: no valid JSON: {error.msg}.") from None
        except ValidationError as error:
            problems = "; ".join(describe_problem(p) for p in error.errors(include_url=False))
            raise TaskError(f"{path}:{number}: {problems}") from None


def _refuse_leaks(folder: Path, task: Task) -> None:
    for part in ("canonical", "ood"):
        val = {(row.prompt, row.target) for row in getattr(task.val, part).rows}
        for number, row in enumerate(getattr(task.test, part).rows, start=1):
            if (row.prompt, row.target) in val:
                raise TaskError(
                    f"{folder / 'test' / part}.jsonl:{number}: this row stands in the validation "
                    f"split too: {row.prompt!r}."
                )


def save_task(task: Task, folder: Path) -> None:
    """Write a task as a folder that `load_task` reads.

    Raises:
        TaskError: the folder exists and holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "task.yaml").is_file():
        raise TaskError(f"{folder} exists and is no task; choose another folder.")
    for name, split in (("val", task.val), ("test", task.test)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        parts = {
            "canonical": split.canonical.rows,
            "ood": split.ood.rows,
            "hard_negatives": split.hard_negatives.rows,
            "related": split.related,
        }
        for part, rows in parts.items():
            lines = (row.model_dump_json(exclude_defaults=True) for row in rows)
            (folder / name / f"{part}.jsonl").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
    card = task.model_dump(mode="json", exclude={"val", "test"})
    if not task.constraints:
        del card["constraints"]
    (folder / "task.yaml").write_text(
        yaml.safe_dump(card, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
