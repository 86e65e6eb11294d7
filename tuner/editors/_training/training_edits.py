"""What learned editors train on: edits, each with rows in and out of its scope."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from tuner.editing.task import Example, Split
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class TrainingEdit:
    """An edit, and the rows of its record."""

    edit: Example
    in_scope: tuple[Example, ...]
    """Rows in its scope, with what the edited model should say; without the edit itself."""
    out_of_scope: tuple[Example, ...]

    @property
    def record(self) -> str | None:
        """What joins its rows."""
        return self.edit.record

    @property
    def inside(self) -> tuple[Example, ...]:
        """The edit itself and the rows in its scope."""
        return (self.edit, *self.in_scope)

    @property
    def prompts_inside(self) -> frozenset[str]:
        """The prompts in its scope, its own among them."""
        return frozenset(row.prompt for row in self.inside)


def check_training(split: Split | None, *, without_outside: bool = False) -> Split:
    """Return the split if an editor can learn from it.

    With `without_outside` no row out of scope is needed.

    Raises:
        ConfigError: there is none, or its edits lack rows in or out of their scope.
    """
    if split is None:
        raise ConfigError(
            "This editor learns from other edits, and the task has none. Give it a folder train/ "
            "with canonical.jsonl, ood.jsonl and hard_negatives.jsonl, joined by `record`, or use "
            "another editor."
        )
    edits = training_edits(split)
    inside = {edit.record for edit in edits}
    outside = {edit.record for edit in edits if edit.out_of_scope}
    if len(inside) < 2 or not (outside or without_outside):
        known = {row.record for row in split.canonical.rows if row.record is not None}
        raise ConfigError(
            "The train split must hold two edits or more with rows in their scope (ood), and some "
            "of them rows out of it (hard_negatives), all joined to their canonical row by "
            f"`record`; got {len(known)} edits with a record, {len(inside)} of them with rows in "
            f"scope, {len(outside)} of those with rows out of it. Give more rows, or use another "
            "editor."
        )
    return split


def training_edits(split: Split) -> list[TrainingEdit]:
    """Return the edits of a split that have rows in their scope, joined by record."""
    inside = _by_record(split.ood.rows)
    outside = _by_record(split.hard_negatives.rows)
    return [
        TrainingEdit(row, inside[row.record], outside.get(row.record, ()))
        for row in split.canonical.rows
        if row.record is not None and row.record in inside
    ]


def split_hash(split: Split) -> str:
    """Return a hash of everything that a split holds."""
    return hashlib.sha256(split.model_dump_json().encode()).hexdigest()


def hold_out(
    edits: Sequence[TrainingEdit], share: float, random: torch.Generator
) -> tuple[list[TrainingEdit], list[TrainingEdit]]:
    """Return the edits to learn from, and a share of them that training is judged by.

    They share no record. Each side has one at least; a share of 0 holds out none.
    """
    records = sorted({str(edit.record) for edit in edits})
    count = min(max(1, round(share * len(records))), len(records) - 1) if share else 0
    order = torch.randperm(len(records), generator=random).tolist()
    away = {records[index] for index in order[:count]}
    return (
        [edit for edit in edits if edit.record not in away],
        [edit for edit in edits if edit.record in away],
    )


def _by_record(rows: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    by_record: dict[str, list[Example]] = {}
    for row in rows:
        if row.record is not None:
            by_record.setdefault(row.record, []).append(row)
    return {record: tuple(of_record) for record, of_record in by_record.items()}
