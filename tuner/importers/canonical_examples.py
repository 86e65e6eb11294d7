"""A canonical-examples task as published, JSON lines in two parts, becomes a task."""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, final
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.task import Example, ExampleSet, LossKind, Passage, Split, Task
from tuner.editing.task_folder import read_rows
from tuner.errors import ConfigError, TaskError
from tuner.files.text_file import is_file
from tuner.importers.canonical_tasks import CanonicalTask, find_canonical_task
from tuner.validation import show_path

# Related texts of stereoset begin with GPT-2's end of text. Texts are judged after that token
# anyway, whatever a model calls it.
_END_OF_TEXT = "<|endoftext|>"


class _PublishedRow(BaseModel):
    """Fields that say what a row is about; texts that it was made from are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    country: str | None = None
    company: str | None = None
    target: str | None = None
    entity_string: str | None = None
    capital: str | None = None
    ceo: str | None = None
    bias_answer: str | None = None

    @property
    def subject(self) -> str | None:
        """What the row is about; an address of Wikipedia becomes its article's name."""
        if self.entity_string:
            article = unquote(self.entity_string.rpartition("/wiki/")[2]).replace("_", " ")
            return re.sub(r" \(.*\)$", "", article)
        return self.country or self.company or self.target

    @property
    def answer(self) -> str | None:
        """What the row should be asking for."""
        return self.capital or self.ceo or self.bias_answer


class _Row(_PublishedRow):
    prefix: str
    suffix: str = Field(min_length=1)


class _Pair(_PublishedRow):
    prefix: str
    suffix1: str = Field(min_length=1)
    suffix2: str = Field(min_length=1)


class _Text(_PublishedRow):
    text: str = Field(min_length=1)


_Item = TypeVar("_Item", Example, Passage)


@final
@dataclass(frozen=True)
class _Read(Generic[_Item]):
    """A row as it will stand in the task.

    Attributes:
        about: What the row is divided by: its subject or its verb, or else its own text.
        warts: What is odd about it in the published file.
    """

    item: _Item
    about: str
    file: str
    line: int
    warts: tuple[str, ...]


@final
@dataclass(frozen=True)
class _Part:
    """The published validation or test part of a task."""

    canonical: tuple[_Read[Example], ...]
    ood: tuple[_Read[Example], ...]
    hard_negatives: tuple[_Read[Example], ...]
    related: tuple[_Read[Passage], ...]

    @property
    def rows(self) -> Iterator[_Read[Example] | _Read[Passage]]:
        """Every row, file by file."""
        yield from self.canonical
        yield from self.ood
        yield from self.hard_negatives
        yield from self.related

    @property
    def edited(self) -> frozenset[str]:
        """What the canonical examples are about."""
        return frozenset(row.about for row in self.canonical)

    def about(self, keep: Callable[[str], bool]) -> "_Part":
        """Return the rows that are about something to be kept."""
        return _Part(
            canonical=tuple(row for row in self.canonical if keep(row.about)),
            ood=tuple(row for row in self.ood if keep(row.about)),
            hard_negatives=tuple(row for row in self.hard_negatives if keep(row.about)),
            related=tuple(row for row in self.related if keep(row.about)),
        )

    def split(self, loss: LossKind) -> Split:
        """Return the part as a split."""
        return Split(
            canonical=ExampleSet(loss=loss, rows=tuple(row.item for row in self.canonical)),
            ood=ExampleSet(loss=loss, rows=tuple(row.item for row in self.ood)),
            hard_negatives=ExampleSet(
                loss=LossKind.LIKELIHOOD, rows=tuple(row.item for row in self.hard_negatives)
            ),
            related=tuple(row.item for row in self.related),
        )

    def __str__(self) -> str:
        return (
            f"{len(self.canonical)} canonical, {len(self.ood)} OOD, "
            f"{len(self.hard_negatives)} hard-negative and {len(self.related)} related rows"
        )


def import_canonical_examples(
    folder: Path, published: str, name: str, *, divide_val: int | None = None
) -> Task:
    """Return one of the six published canonical-examples tasks.

    `folder` is the repository, its `data`, a task's folder in it, or one that holds the files.
    Prompts and targets stay as published, blanks and all, since they are tokenised apart.
    Canonical and OOD rows that stand in both parts leave validation, so that test figures stay
    comparable. With `divide_val`, a seed, only the validation files are read, and their rows are
    divided into validation and test by what they are about.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), the fields of their files and the thresholds of
    their code.

    Raises:
        ConfigError: no canonical-examples task has that name, or there is too little to divide.
        TaskError: a file is missing or a row is malformed; names file and line.
    """
    kind = find_canonical_task(published)
    place = _find_files(folder, kind, need_test=divide_val is None)
    read = [_read_part(place, kind, "val")]
    if divide_val is None:
        read.append(_read_part(place, kind, "test"))
        val, test = read
        origin = "with its validation and test parts as published"
    else:
        val, test = _divide(read[0], divide_val, folder, kind)
        origin = (
            f"from its validation part alone, divided by {kind.unit} with seed {divide_val}: test "
            "figures are not the published ones"
        )
    kept = _without_repeats(val, test)
    if not kept.canonical or not kept.ood:
        raise TaskError(f"{place}: every row of a validation file stands in the test file too.")
    shared = len(kept.edited & test.edited)
    return Task(
        name=name,
        description=f"{kind.about} The task {kind.name} of the canonical examples, {origin}. "
        f"Validation: {kept}; test: {test}. Canonical examples of both: {shared} {kind.unit}s in "
        f"common. {_describe_loss(val, kept)}"
        f"{_describe_warts(row for part in read for row in part.rows)}",
        loss=kind.loss,
        threshold=kind.threshold,
        source=f"{kind.source}.",
        licence=f"{kind.licence}.",
        val=kept.split(kind.loss),
        test=test.split(kind.loss),
    )


def _find_files(folder: Path, kind: CanonicalTask, *, need_test: bool) -> Path:
    """Return the folder that holds the files.

    Raises:
        TaskError: there is none, or it lacks some.
    """
    places = [
        base / below
        for base in (folder, folder / kind.name, folder / "data" / kind.name)
        for below in ("", "split")
    ]
    folders = (p for p in places if any(is_file(p / f"{stem}-val.jsonl") for stem in kind.stems))
    place = next(folders, None)
    if place is None:
        raise TaskError(
            f"{show_path(folder)}: neither here nor in "
            f"{', '.join(show_path(p) for p in places[1:])} is there a "
            f"{kind.canonical}-val.jsonl. Give the published repository, its data folder, or the "
            "folder of the files."
        )
    parts = ("val", "test") if need_test else ("val",)
    missing = [
        (part, f"{stem}-{part}.jsonl")
        for part in parts
        for stem in kind.stems
        if not os.path.lexists(place / f"{stem}-{part}.jsonl")
    ]
    if missing:
        hint = ""
        if all(part == "test" for part, _ in missing):
            hint = (
                " Without the test part, --split-val SEED divides the validation part into "
                "validation and test."
            )
        raise TaskError(f"{place}: missing: {', '.join(name for _, name in missing)}.{hint}")
    return place


def _read_part(place: Path, kind: CanonicalTask, part: str) -> _Part:
    def path(stem: str) -> Path:
        return place / f"{stem}-{part}.jsonl"

    canonical = _read_examples(path(kind.canonical), kind, names=None)
    names = _Names(row.about for row in canonical)
    ood = _read_examples(path(kind.ood), kind, names)
    if not canonical or not ood:
        raise TaskError(f"{path(kind.ood if canonical else kind.canonical)}: has no row.")
    return _Part(
        canonical=canonical,
        ood=ood,
        hard_negatives=tuple(_hard_negatives(path(kind.hard_negatives), kind, names)),
        related=tuple(_related(path(kind.related), names)),
    )


@final
class _Names:
    """Finds what the canonical examples are about in texts that no field says it of."""

    def __init__(self, names: Iterable[str]) -> None:
        # The longer first, so that Guinea-Bissau is not read as Guinea.
        known = sorted(set(names), key=lambda name: (-len(name), name))
        self._pattern = re.compile(
            rf"(?<!\w)({'|'.join(re.escape(name) for name in known)})(?:e?s)?(?!\w)", re.IGNORECASE
        )

    def named_in(self, text: str) -> str | None:
        """Return the longest name in a text, also of a plural, or None."""
        return max(self._pattern.findall(text), key=len, default=None)


def _read_examples(
    path: Path, kind: CanonicalTask, names: _Names | None
) -> tuple[_Read[Example], ...]:
    """Return rows of the task's loss: canonical examples where no names are known yet."""
    rows: list[_Read[Example]] = []
    asked: dict[str, str] = {}
    odd = _Repeats()
    for line, record, example in _examples(path, kind):
        text = f"{example.prompt}{example.target}"
        subject = record.subject or _subject(text, kind, names)
        about = _verb(example) if kind.by_verb else subject
        warts = [*odd.warts(example), *_blank_warts(example), *_subject_warts(record, example)]
        if record.answer is not None and example.target.strip() != record.answer:
            warts.append("target other than its row's own answer")
        first = asked.setdefault(example.prompt, example.target)
        if names is None and kind.loss is LossKind.LIKELIHOOD and first != example.target:
            warts.append("prompt asked before with another target")
        placed = example.model_copy(update={"subject": _standing(subject, example.prompt)})
        rows.append(_Read(placed, (about or text).casefold(), path.name, line, tuple(warts)))
    return tuple(rows)


def _examples(path: Path, kind: CanonicalTask) -> Iterator[tuple[int, _PublishedRow, Example]]:
    if kind.loss.needs_contrast:
        for line, pair in read_rows(path, _Pair):
            example = Example(prompt=pair.prefix, target=pair.suffix1, contrast=pair.suffix2)
            yield line, pair, example
    else:
        for line, row in read_rows(path, _Row):
            yield line, row, Example(prompt=row.prefix, target=row.suffix)


def _subject(text: str, kind: CanonicalTask, names: _Names | None) -> str | None:
    """Return the subject of a row that has no field for it, from the published wording."""
    if names is None:
        stated = kind.wording.match(text) if kind.wording is not None else None
        return stated.group(1) if stated else None
    return None if kind.by_verb else names.named_in(text)


def _hard_negatives(path: Path, kind: CanonicalTask, names: _Names) -> Iterator[_Read[Example]]:
    odd = _Repeats()
    for line, row in read_rows(path, _Row):
        example = Example(prompt=row.prefix, target=row.suffix)
        text = f"{row.prefix}{row.suffix}"
        subject = row.subject or _subject(text, kind, names)
        about = subject or names.named_in(text) or text
        warts = (*odd.warts(example), *_blank_warts(example), *_subject_warts(row, example))
        placed = example.model_copy(update={"subject": _standing(subject, row.prefix)})
        yield _Read(placed, about.casefold(), path.name, line, warts)


def _related(path: Path, names: _Names) -> Iterator[_Read[Passage]]:
    odd = _Repeats()
    for line, row in read_rows(path, _Text):
        text = row.text.removeprefix(_END_OF_TEXT)
        if not text:
            raise TaskError(f"{path}:{line}: the text holds nothing but {_END_OF_TEXT}.")
        passage = Passage(text=text)
        warts = odd.warts(passage)
        if text != row.text:
            warts = (*warts, f"text that began with {_END_OF_TEXT}, now taken off")
        about = row.subject or names.named_in(text) or text
        yield _Read(passage, about.casefold(), path.name, line, warts)


@final
class _Repeats:
    """Tells which rows of a file an earlier one has said."""

    def __init__(self) -> None:
        self._seen: set[Example | Passage] = set()

    def warts(self, item: Example | Passage) -> tuple[str, ...]:
        """Return the wart of a row that repeats another."""
        repeated = item in self._seen
        self._seen.add(item)
        return ("repeated row",) if repeated else ()


def _blank_warts(example: Example) -> Iterator[str]:
    after_blank = example.prompt[-1:].isspace()
    if example.target[0].isspace():
        if after_blank:
            yield "prompt that ends in a blank before its target's own"
    elif after_blank:
        yield "prompt that ends in the blank that its target lacks"
    else:
        yield "target without a blank before it"


def _subject_warts(record: _PublishedRow, example: Example) -> Iterator[str]:
    if record.subject is not None and _standing(record.subject, example.prompt) is None:
        yield "prompt that does not name its subject"


def _standing(subject: str | None, prompt: str) -> str | None:
    """Return a subject as the prompt has it last, in its case, or None. A plural names it too."""
    if subject is None:
        return None
    spellings = re.findall(rf"(?<!\w)({re.escape(subject)})(?:e?s)?(?!\w)", prompt, re.IGNORECASE)
    return spellings[-1] if spellings else None


def _verb(example: Example) -> str:
    """Return the verb of a pair such as " beats him." and " beat him.": its shorter form."""
    forms = [form.split() for form in (example.target, example.contrast or "")]
    return min((words[0] for words in forms if words), key=len, default="")


def _divide(part: _Part, seed: int, folder: Path, kind: CanonicalTask) -> tuple[_Part, _Part]:
    """Return two parts that are about different things.

    Raises:
        ConfigError: one of them would have no canonical example or no OOD row.
    """
    edited = part.edited
    others = {row.about for row in part.rows} - edited
    first = _half(edited, seed) | _half(others, seed)
    halves = part.about(lambda about: about in first), part.about(lambda about: about not in first)
    if not all(half.canonical and half.ood for half in halves):
        raise ConfigError(
            f"{folder}: the {len(edited)} {kind.unit}s of {kind.canonical}-val.jsonl, with their "
            f"rows in {kind.ood}-val.jsonl, are too few to divide with seed {seed}."
        )
    return halves


def _half(names: Iterable[str], seed: int) -> frozenset[str]:
    order = sorted(names)
    random.Random(f"subjects {seed}").shuffle(order)
    return frozenset(order[: (len(order) + 1) // 2])


def _without_repeats(val: _Part, test: _Part) -> _Part:
    """Return validation without the canonical and OOD rows that test has, as tasks need it."""
    return replace(
        val,
        canonical=_unshared(val.canonical, test.canonical),
        ood=_unshared(val.ood, test.ood),
    )


def _unshared(
    val: Sequence[_Read[Example]], test: Sequence[_Read[Example]]
) -> tuple[_Read[Example], ...]:
    taken = {(row.item.prompt, row.item.target) for row in test}
    return tuple(row for row in val if (row.item.prompt, row.item.target) not in taken)


def _describe_loss(val: _Part, kept: _Part) -> str:
    """Return how many rows test has taken from validation."""
    canonical = len(val.canonical) - len(kept.canonical)
    ood = len(val.ood) - len(kept.ood)
    if not canonical and not ood:
        return ""
    return f"Left out of validation, since test has them: {canonical} canonical, {ood} OOD rows. "


def _describe_warts(rows: Iterable[_Read[Example] | _Read[Passage]]) -> str:
    """Return what is odd in each file, with counts and first lines."""
    files: dict[str, Counter[str]] = {}
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        for wart in row.warts:
            files.setdefault(row.file, Counter())[wart] += 1
            first.setdefault((row.file, wart), row.line)
    if not files:
        return "No oddities in the files."
    told = (
        f"{file}: "
        + ", ".join(f"{n} × {wart} (first in line {first[file, wart]})" for wart, n in of.items())
        for file, of in files.items()
    )
    return f"Oddities of the files, left in unless said: {'; '.join(told)}."
