"""Edits with rows in and out of their scope become a task: how many, which, and in which split."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.task import Example, ExampleSet, LossKind, Split, SuccessCriterion, Task
from tuner.errors import ConfigError
from tuner.importers.by_hand import ByHand

SplitName = Literal["test", "val", "train"]

_DEFAULT_COUNTS: Mapping[SplitName, int] = {"test": 1000, "val": 1000, "train": 10_000}
_WORDS: Mapping[SplitName, str] = {"test": "test", "val": "validation", "train": "training"}


@final
class EditCounts(BaseModel):
    """How many edits each split gets, which, and how many of them are made at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int | None = Field(default=None, ge=0, description="Edits to train on; 0 for none.")
    val: int | None = Field(default=None, ge=1, description="Edits of the validation split.")
    test: int | None = Field(default=None, ge=1, description="Edits of the test split.")
    simultaneous: int | None = Field(
        default=None, ge=1, description="How many edits are made at once; default all of a split."
    )
    seed: int = Field(default=0, ge=0, description="Seed of every choice.")

    def wanted(self, split: SplitName) -> int | None:
        """Return how many edits were asked for, or None."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def of(self, split: SplitName, usable: int, source: str) -> int:
        """Return how many of the usable edits a split gets.

        By default at most half: what is not edited gives the rows out of scope.

        Raises:
            ConfigError: there are too few.
        """
        wanted = self.wanted(split)
        count = min(_DEFAULT_COUNTS[split], usable // 2) if wanted is None else wanted
        if count < 1 or count >= usable:
            raise self.too_few(split, usable, source)
        return count

    def too_few(self, split: SplitName, usable: int, source: str) -> ConfigError:
        """Return the error for a file that holds too few edits."""
        wanted = self.wanted(split)
        need = "at least two records" if wanted is None else f"more than {wanted} records"
        return ConfigError(
            f"{source}: the {_WORDS[split]} split needs {need} that can be edits, since rows out "
            f"of scope come from records that are none, but there are {usable}. Lower --{split}, "
            "or give a longer file."
        )

    def random(self, *purpose: str) -> random.Random:
        """Return random numbers of their own for one purpose, so that no other's are shifted."""
        return random.Random(" ".join((*purpose, str(self.seed))))


@final
@dataclass(frozen=True)
class ScopedEdit:
    """An edit with rows that it should change and rows that it should not."""

    edit: Example
    inside: tuple[Example, ...]
    outside: tuple[Example, ...]


@final
@dataclass
class ReadState:
    """What is known while splits are read one after the other.

    Attributes:
        taken: What an edit of any split is about, or asks; no later one may.
        left_out: Records that are not edits, as reasons with counts.
    """

    taken: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


ReadSplit = Callable[[SplitName, ReadState], Sequence[ScopedEdit]]


def scoped_task(
    read: ReadSplit,
    counts: EditCounts,
    *,
    name: str,
    about: str,
    rule: SuccessCriterion,
    files: ByHand,
) -> Task:
    """Return the task of the splits that `read` gives.

    The test split is read first, so that its rows do not depend on how many others there are.

    Raises:
        ConfigError: there are fewer usable records than asked for.
        TaskError: a file is missing or a row is malformed; names file and line.
    """
    reading = ReadState()
    edits = {split: read(split, reading) for split in _asked_for(counts)}
    sizes = ", ".join(f"{len(of_split)} for {_WORDS[split]}" for split, of_split in edits.items())
    left_out = "".join(f"; {count} {reason}" for reason, count in reading.left_out.items())
    splits = {split: _split(of_split) for split, of_split in edits.items()}
    task = Task(
        name=name,
        description=f"{about} Edits, chosen with seed {counts.seed}: {sizes}{left_out}.",
        loss=LossKind.LIKELIHOOD,
        success=rule,
        source=f"{files.source}.",
        licence=f"{files.licence}.",
        val=splits["val"],
        test=splits["test"],
        train=splits.get("train"),
    )
    return task.with_edits(counts.simultaneous)


def _asked_for(counts: EditCounts) -> tuple[SplitName, ...]:
    return ("test", "val") if counts.train == 0 else ("test", "val", "train")


def _split(edits: Sequence[ScopedEdit]) -> Split:
    def examples(rows: Sequence[Example]) -> ExampleSet:
        return ExampleSet(loss=LossKind.LIKELIHOOD, rows=tuple(rows))

    return Split(
        canonical=examples([one.edit for one in edits]),
        ood=examples([row for one in edits for row in one.inside]),
        hard_negatives=examples([row for one in edits for row in one.outside]),
    )
