"""What learned editors train on: edits, each with prompts in and out of its scope."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from tuner.editing.task import Example, Split
from tuner.editing.training_rows import generator_for
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class TrainingEdit:
    """An edit, and the rows of its record."""

    edit: Example
    inside: tuple[Example, ...]
    """Rows in its scope, with what the edited model should say; the edit itself is the first."""
    outside: tuple[Example, ...]
    """Rows out of its scope."""

    @property
    def prompts_inside(self) -> frozenset[str]:
        """The prompts in its scope."""
        return frozenset(row.prompt for row in self.inside)


def training_edits(split: Split | None) -> tuple[TrainingEdit, ...]:
    """Return the edits of a training split with their rows, joined by record.

    Raises:
        ConfigError: there is no split, an edit has no record, or no row is in its scope.
    """
    if split is None:
        raise ConfigError(
            "A learned editor needs other edits to train on. Give the task a folder train/ with "
            "canonical.jsonl, ood.jsonl (in scope) and hard_negatives.jsonl (out of scope), whose "
            "rows name their edit by `record`."
        )
    inside = _by_record(split.ood.rows)
    outside = _by_record(split.hard_negatives.rows)
    found = []
    for number, row in enumerate(split.canonical.rows, start=1):
        if row.record not in inside:
            raise ConfigError(
                f"train/canonical.jsonl, row {number}: rows of ood.jsonl must have its `record`, "
                f"but none has {row.record!r}: {row.prompt!r}."
            )
        rows = (row, *inside[row.record])
        found.append(TrainingEdit(row, rows, tuple(outside.get(row.record, ()))))
    return tuple(found)


def split_hash(split: Split) -> str:
    """Return a hash of everything that a split holds."""
    return hashlib.sha256(split.model_dump_json().encode()).hexdigest()


def hold_out(
    edits: Sequence[TrainingEdit], share: float, *, seed: int
) -> tuple[tuple[TrainingEdit, ...], tuple[TrainingEdit, ...]]:
    """Return the edits to train on, and a share of them that training is judged by.

    Edits of one record stay together.
    """
    records = list(dict.fromkeys(edit.edit.record for edit in edits))
    random = generator_for("held-out edits", seed)
    order = torch.randperm(len(records), generator=random).tolist()
    held = {records[place] for place in order[: int(share * len(records))]}
    return (
        tuple(edit for edit in edits if edit.edit.record not in held),
        tuple(edit for edit in edits if edit.edit.record in held),
    )


def _by_record(rows: Sequence[Example]) -> dict[str | None, list[Example]]:
    found: dict[str | None, list[Example]] = {}
    for row in rows:
        if row.record is not None:
            found.setdefault(row.record, []).append(row)
    return found
