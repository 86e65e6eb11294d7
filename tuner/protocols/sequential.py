"""A sequence: edits one after another, and what is left of the earlier ones after each."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tuner.editing.corpus import TextPart
from tuner.editing.editor import Editor, EditSequence
from tuner.editing.likelihood import encode_continuations, in_length_order, predicted_tokens
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Deviation
from tuner.evaluation.success import SuccessMeter
from tuner.files.atomic_file import write_text
from tuner.files.json_lines import append_line, cut_half_line, read_line, whole_lines
from tuner.files.text_file import read_bytes
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import SplitName
from tuner.trial.run import library_versions

_BATCH = 32
# What one edit leaves to the next; 1 read all earlier edits again, and made memories anew.
_PROTOCOL = 2

_NOT_A_SEQUENCE = "It is not a file of a sequence; choose another place."
_CUT = "Delete this line and all after it to go on from there, or choose another place."

EntryListener = Callable[["SequentialEntry"], None]


@final
class SequentialHeader(BaseModel):
    """All that a sequence's entries depend on; it is continued only where this is the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_fingerprint: str
    task: str
    task_hash: str
    split: SplitName
    editor: str
    hyperparameters: dict[str, Any]
    seed: int
    edits: int
    every: int
    only_wrong: bool
    general_hash: str
    versions: dict[str, str]
    protocol: int = Field(default=1, description="How edits follow one another; 2 as it is now.")


@final
class SequentialEntry(BaseModel):
    """One edit of a sequence, and what the model does after it.

    What takes long is measured after every so many edits, and after the last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(description="Place in the sequence, from 1.")
    prompt: str
    applied: bool = Field(description="Whether it was made; not where the model was right already.")
    success: float = Field(description="Success on this edit's own row, by the task's rule.")
    retention: float | None = Field(
        default=None, description="Mean success on the rows of all edits so far."
    )
    generalisation: float | None = Field(
        default=None, description="Mean success on the OOD rows of the records edited so far."
    )
    unchanged: float | None = Field(
        default=None,
        description="Share of hard negatives and neighbours for which the likeliest tokens are "
        "all those of the base model.",
    )
    deviation: Deviation | None = None
    seconds: float = Field(description="How long the edit itself took.")
    measuring_seconds: float = Field(
        default=0.0,
        description="How long it took to judge: this edit's own row and, where that was due, all "
        "earlier ones, which are more and more.",
    )


@final
@dataclass(frozen=True)
class SequentialRecord:
    """A sequence, as far as it has come."""

    header: SequentialHeader
    entries: tuple[SequentialEntry, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return what was written to `path`; a last line that was cut short is left out.

        Raises:
            ConfigError: it is not a file of a sequence.
        """
        lines = whole_lines(path)
        if not lines:
            raise ConfigError(f"{path} holds no sequence; choose another place.")
        header = read_line(path, 1, lines[0], SequentialHeader, _NOT_A_SEQUENCE)
        entries = []
        for place, line in enumerate(lines[1:], start=1):
            entry = read_line(path, place + 1, line, SequentialEntry, _CUT)
            if entry.number != place or place > header.edits:
                raise ConfigError(
                    f"{path}:{place + 1}: edit {place} of {header.edits} must stand here, but it "
                    f"is edit {entry.number}. {_CUT}"
                )
            entries.append(entry)
        return cls(header, tuple(entries))

    @property
    def measured(self) -> tuple[SequentialEntry, ...]:
        """The entries after which everything was measured."""
        return tuple(entry for entry in self.entries if entry.retention is not None)


def run_sequence(
    evaluator: Evaluator,
    editor: Editor,
    *,
    seed: int,
    split: SplitName = SplitName.VAL,
    every: int = 1,
    only_wrong: bool = False,
    path: Path | None = None,
    on_entry: EntryListener | None = None,
) -> SequentialRecord:
    """Return what the model does after each edit of a split, made one after another.

    Changes that add up edit the model that the earlier ones left, and memories grow by one edit
    at a time: an edit costs the same wherever it stands. What is judged after every `every` edits
    is all of them so far, which costs more and more. `only_wrong` leaves out edits whose row the
    model gets right already. With `path` each entry is written as soon as it is known, and a
    stream that was broken off goes on: its edits are made again once, but not measured again.

    Source: Hartvigsen et al. 2023 (arXiv:2211.11031), the protocol of sequential editing.

    Raises:
        ConfigError: the editor cannot edit this model or task or makes batches of its own, or
            `path` holds another sequence.
        EditError: an edit diverged or ran out of memory; what came before it is on disk.
    """
    if every < 1:
        raise ConfigError(f"`every` must be at least 1, but got {every}.")
    if editor.batches != 1:
        raise ConfigError(
            f"A sequence makes one edit after another itself, but got batches: {editor.batches}. "
            "Leave `batches` at 1."
        )
    editor.check_task(evaluator.task)
    editor.check_model(evaluator.model, evaluator.companions)
    stream = _Sequence(evaluator, editor, seed, split)
    rows = stream.examples.rows
    header = SequentialHeader(
        base=evaluator.model.id,
        base_fingerprint=evaluator.model.fingerprint,
        task=evaluator.task.name,
        task_hash=evaluator.task.hash,
        split=split,
        editor=editor.name(),
        hyperparameters=editor.model_dump(mode="json"),
        seed=seed,
        edits=len(rows),
        every=every,
        only_wrong=only_wrong,
        general_hash=evaluator.general.corpus(TextPart.SEARCH).hash,
        versions=library_versions(),
        protocol=_PROTOCOL,
    )
    entries = [*_resumed(path, header)]
    for entry in entries:
        if entry.applied:
            stream.make(entry.number)
    for number in range(len(entries) + 1, len(rows) + 1):
        row = rows[number - 1]
        began = time.perf_counter()
        applied = not (only_wrong and stream.success([row]) >= 1)
        asked = time.perf_counter()
        if applied:
            stream.make(number)
        made = time.perf_counter()
        entry = SequentialEntry(
            number=number,
            prompt=row.prompt,
            applied=applied,
            success=stream.success([row]),
            seconds=made - asked,
        )
        if number % every == 0 or number == len(rows):
            entry = entry.model_copy(update=stream.measure(number))
        measuring = asked - began + time.perf_counter() - made
        entry = entry.model_copy(update={"measuring_seconds": measuring})
        entries.append(entry)
        if path is not None:
            append_line(path, entry)
        if on_entry is not None:
            on_entry(entry)
    return SequentialRecord(header, tuple(entries))


@final
class _Sequence:
    """The state of a sequence: what has been edited, and the change that it came to."""

    def __init__(self, evaluator: Evaluator, editor: Editor, seed: int, split: SplitName) -> None:
        self.evaluator = evaluator
        self.seed = seed
        given = evaluator.split(split)
        self.examples = given.canonical
        self._edits = EditSequence(editor, evaluator.model, evaluator.auxiliary_for(split))
        self._ood = given.ood.rows
        model = evaluator.model
        outside = (*given.hard_negatives.rows, *given.neighbours)
        self._outside = encode_continuations(model, [(row.prompt, row.target) for row in outside])
        self._said_by_base = self._said()

    def make(self, number: int) -> None:
        """Make an edit by its number, after those made before."""
        row = self.examples.rows[number - 1]
        self._edits.make(self._set([row]), seed=self.seed + number - 1)

    def success(self, rows: Sequence[Example]) -> float:
        """Return the mean success of some rows, by the task's rule."""
        some = ExampleSet(loss=self.examples.loss, rows=tuple(rows))
        none = ExampleSet(loss=LossKind.LIKELIHOOD, rows=())
        judged = Split(canonical=some, ood=some, hard_negatives=none)
        task = self.evaluator.task
        # Success alone is asked for, after every edit.
        meter = SuccessMeter(self.evaluator.model, judged, task.threshold, task.success, metrics=())
        with self._edited():
            successes = meter.success().row_success
        return sum(successes) / len(successes)

    def measure(self, number: int) -> dict[str, Any]:
        """Return all that an entry holds beside the success of its own edit."""
        past = self.examples.rows[:number]
        records = {row.record for row in past if row.record is not None}
        inside = [row for row in self._ood if row.record in records]
        with self._edited():
            same = [
                torch.equal(now, before)
                for now, before in zip(self._said(), self._said_by_base, strict=True)
            ]
        meter, budget = self.evaluator.meter, self.evaluator.budget
        return {
            "retention": self.success(past),
            "generalisation": self.success(inside) if inside else None,
            "unchanged": sum(same) / len(same) if same else None,
            "deviation": Deviation.none(budget.confidence)
            if self._edits.delta is None
            else meter.measure(self._edits.delta, budget.epsilons, sure=False),
        }

    def _set(self, rows: Sequence[Example]) -> ExampleSet:
        return self.examples.model_copy(update={"rows": tuple(rows)})

    def _edited(self) -> AbstractContextManager[None]:
        delta = self._edits.delta
        return nullcontext() if delta is None else self.evaluator.model.edited(delta)

    def _said(self) -> list[Tensor]:
        """Return the likeliest tokens where hard negatives and neighbours have their targets."""
        model = self.evaluator.model
        said: list[Tensor] = [torch.empty(0)] * len(self._outside)
        for batch in in_length_order([len(row.ids) for row in self._outside], _BATCH):
            rows = [self._outside[place] for place in batch]
            predicted = predicted_tokens(model.network, rows, model.end_id)
            for place, tokens in zip(batch, predicted, strict=True):
                said[place] = tokens
        return said


def _resumed(path: Path | None, header: SequentialHeader) -> tuple[SequentialEntry, ...]:
    """Return the entries that are there already; a new file gets its header."""
    if path is None:
        return ()
    line = f"{header.model_dump_json()}\n"
    if not os.path.lexists(path) or line.encode().startswith(read_bytes(path)):
        # There is none, or one whose very first line was cut short.
        write_text(path, line)
        return ()
    record = SequentialRecord.load(path)
    # The base is known by its fingerprint; its folder may be spelled otherwise, or have moved.
    begun_with = record.header.model_copy(update={"base": header.base})
    if begun_with != header:
        ours, theirs = header.model_dump(), begun_with.model_dump()
        other = ", ".join(name for name in ours if ours[name] != theirs[name])
        raise ConfigError(
            f"{path} holds a sequence that differs in {other}. Choose another place, or repeat the "
            "settings with which it was begun."
        )
    cut_half_line(path)
    return record.entries
