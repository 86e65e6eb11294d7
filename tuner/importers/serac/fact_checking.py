"""SERAC's fact checking becomes a task: VitaminC's evidence is true, and claims follow from it."""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict

from tuner.editing.task import Example, SuccessCriterion, Task
from tuner.editing.task_folder import read_rows
from tuner.errors import ConfigError
from tuner.importers.by_hand import SERAC_FACT_CHECKING
from tuner.importers.scoped_edits import EditCounts, ReadState, ScopedEdit, SplitName, scoped_task

_FILE_SPLITS = {"train": "train", "val": "dev", "test": "test"}
# Evidence of no more words than this is left out by the published code.
_SHORT_EVIDENCE = 10
_TRUE, _FALSE = " True", " False"


class _Label(StrEnum):
    SUPPORTS = "SUPPORTS"
    REFUTES = "REFUTES"
    NEUTRAL = "NOT ENOUGH INFO"


class _PublishedRow(BaseModel):
    """Fields of the published files that matter here; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    evidence: str
    claim: str
    label: _Label
    page: str
    revision_type: str


def import_serac_fact_checking(folder: Path, name: str, counts: EditCounts) -> Task:
    """Return the task FC of SERAC's published files, which are VitaminC's.

    An edit states its evidence, which is then true. In scope is a claim that the evidence
    supports or refutes. Out of scope are a claim that the same evidence leaves open, where there
    is one, and a claim about a page that is not edited. The published code makes an edit of a
    claim left open too; such an edit would have no row in scope.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4 and their code; Schuster et al. 2021
    (arXiv:2103.08541), the fields of the files.

    Raises:
        TaskError: a file is missing or a row is malformed; names file and line.
        ConfigError: there are fewer usable claims than asked for.
    """

    def read(split: SplitName, reading: ReadState) -> Sequence[ScopedEdit]:
        return _read(folder, split, reading, counts)

    return scoped_task(
        read,
        counts,
        name=name,
        about="A claim is to be judged by the evidence that is edited in: True where it supports "
        "the claim, False where it refutes it. As many of each, except in the test split; each "
        "edit is about a page of its own.",
        rule=SuccessCriterion.LIKELIER,
        files=SERAC_FACT_CHECKING,
    )


@final
@dataclass
class _File:
    """What the usable rows of a file hold, with their lines."""

    judged: list[tuple[int, _PublishedRow]] = field(default_factory=list)
    left_open: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    claims: list[_PublishedRow] = field(default_factory=list)


def _read(
    folder: Path, split: SplitName, reading: ReadState, counts: EditCounts
) -> list[ScopedEdit]:
    (path,) = SERAC_FACT_CHECKING.find(folder, [f"{_FILE_SPLITS[split]}.jsonl"])
    file = _usable(path, reading)
    pages = len({row.page for _, row in file.judged})
    count = counts.of(split, pages, str(path))
    chosen = _choose(file.judged, count, reading, counts.random("edits", split), split != "test")
    wanted = counts.wanted(split)
    if not chosen or (wanted is not None and len(chosen) < wanted):
        raise counts.too_few(split, len(chosen), str(path))
    edited = {row.page for _, row in chosen}
    judged = {row.claim for _, row in chosen}
    reading.taken |= edited | judged | {row.evidence for _, row in chosen}
    others = [row for row in file.claims if row.page not in edited and row.claim not in judged]
    edits = []
    for line, row in chosen:
        own = counts.random(split, str(line))
        left_open = [claim for claim in file.left_open[row.evidence] if claim not in judged]
        edits.append(_edit(line, row, left_open, _elsewhere(row.page, others, own, path), own))
    return edits


def _usable(path: Path, reading: ReadState) -> _File:
    file = _File()
    for line, row in read_rows(path, _PublishedRow):
        if row.revision_type != "real":
            reading.left_out["were of no real revision"] += 1
        elif len(row.evidence.split(" ")) <= _SHORT_EVIDENCE:
            reading.left_out["had short evidence"] += 1
        elif not row.claim.strip() or not row.page.strip():
            reading.left_out["had no claim or no page"] += 1
        else:
            # Two that differ in blanks at their ends alone are asked alike.
            row = _PublishedRow(
                evidence=row.evidence.strip(),
                claim=row.claim.strip(),
                label=row.label,
                page=row.page.strip(),
                revision_type=row.revision_type,
            )
            file.claims.append(row)
            if row.label is _Label.NEUTRAL:
                file.left_open[row.evidence].append(row.claim)
            else:
                file.judged.append((line, row))
    return file


def _choose(
    rows: Sequence[tuple[int, _PublishedRow]],
    count: int,
    reading: ReadState,
    shuffles: random.Random,
    balanced: bool,
) -> list[tuple[int, _PublishedRow]]:
    """Return edits about pages of their own; as many claims supported as refuted, if `balanced`.

    Balanced and odd, one more is supported.
    """
    order = list(rows)
    shuffles.shuffle(order)
    most = {_Label.SUPPORTS: (count + 1) // 2, _Label.REFUTES: count // 2}
    per_label: Counter[_Label] = Counter()
    taken = set(reading.taken)
    chosen: list[tuple[int, _PublishedRow]] = []
    for line, row in order:
        if len(chosen) == count:
            break
        full = balanced and per_label[row.label] == most[row.label]
        # Each page, evidence and claim comes once, in one split.
        about = {row.page, row.evidence, row.claim}
        if full or about & taken:
            continue
        taken |= about
        per_label[row.label] += 1
        chosen.append((line, row))
    if not balanced or len(chosen) == count:
        return chosen
    least = min(per_label[_Label.SUPPORTS], per_label[_Label.REFUTES])
    kept: Counter[_Label] = Counter()
    balance = []
    for line, row in chosen:
        if kept[row.label] < least:
            kept[row.label] += 1
            balance.append((line, row))
    return balance


def _elsewhere(
    page: str, others: Sequence[_PublishedRow], own: random.Random, path: Path
) -> _PublishedRow:
    """Return a claim about another page: neither page's name stands in the other's."""
    start = own.randrange(max(1, len(others)))
    for row in itertools.chain(itertools.islice(others, start, None), others):
        if page not in row.page and row.page not in page:
            return row
    raise ConfigError(
        f"{path}: no claim is about a page other than {page!r} that is not edited, so there is no "
        "row out of scope. Lower the number of edits, or give a longer file."
    )


def _edit(
    line: int,
    row: _PublishedRow,
    left_open: Sequence[str],
    other: _PublishedRow,
    own: random.Random,
) -> ScopedEdit:
    record = str(line)

    def says(text: str, label: _Label) -> Example:
        target, contrast = (_FALSE, _TRUE) if label is _Label.REFUTES else (_TRUE, _FALSE)
        prompt = f"True or False: {text.strip()}"
        return Example(prompt=prompt, target=target, contrast=contrast, record=record)

    # What is left open has no right answer: only whether the answer changes is of interest.
    near = [says(own.choice(left_open), _Label.NEUTRAL)] if left_open else []
    return ScopedEdit(
        edit=says(row.evidence, _Label.SUPPORTS),
        inside=(says(row.claim, row.label),),
        outside=(*near, says(other.claim, other.label)),
    )
