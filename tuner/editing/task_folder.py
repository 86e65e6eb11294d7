"""The folder of a task: found by name or path, read with every row checked, and written."""

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tuner.editing.task import (
    Example,
    ExampleSet,
    GenerationPrompt,
    LossKind,
    Passage,
    Split,
    SuccessCriterion,
    Task,
    TaskCard,
)
from tuner.errors import ConfigError, TaskError, unknown_name
from tuner.files.atomic_file import whole_folder, write_text
from tuner.files.json_file import JsonError, parse_json
from tuner.files.paths import absolute, is_spelled_as_path
from tuner.files.shipped import shipped_folder
from tuner.files.text_file import exists, is_file, is_folder, read_lines
from tuner.files.yaml_file import dump_yaml, load_yaml
from tuner.validation import describe_problems, show_path, show_value


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
    card = load_yaml(folder / "task.yaml", TaskCard)
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


def _load_split(folder: Path, card: TaskCard) -> Split:
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
