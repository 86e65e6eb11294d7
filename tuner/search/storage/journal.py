"""The ledger as a file: a line of JSON per act of Optuna's, and what is done about damaged lines.

A last line that was cut short is not damage: its writer was killed, and the act is done again. Any
other line that is not an act was spoilt by the disk or by a hand; `repair` keeps all whole acts.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, final

from optuna.distributions import json_to_distribution
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from tuner.errors import ClusterError, ConfigError, DiskError
from tuner.files.atomic_file import append_text, cannot_write, write_text
from tuner.files.text_file import read_bytes
from tuner.search.storage.folder import StudyFolder, TrialFile

Act: TypeAlias = dict[str, Any]
"""A line of the journal, in Optuna's words."""

_CREATE_STUDY, _CREATE_TRIAL = 0, 4
# What an act of a kind must have, by Optuna's numbers of the kinds; 10 is skipped by Optuna.
_FIELDS: Final[Mapping[int, Mapping[str, type]]] = {
    0: {"study_name": str, "directions": list},
    1: {"study_id": int},
    2: {"study_id": int, "user_attr": dict},
    3: {"study_id": int, "system_attr": dict},
    4: {"study_id": int},
    5: {"trial_id": int, "param_name": str, "distribution": str},
    6: {"trial_id": int, "state": int},
    7: {"trial_id": int, "step": int},
    8: {"trial_id": int, "user_attr": dict},
    9: {"trial_id": int, "system_attr": dict},
    10: {},
}
_BEGINNING: Final = '{"op_code":'
_DECODER: Final = json.JSONDecoder()
_MOST_GUESSES: Final = 6
_LOST: Final = "Its line in the ledger was damaged, and nothing else of it was on the disk."


@final
class Journal(BaseJournalBackend):  # type: ignore[misc]  # optuna is untyped
    """A journal that one process writes and any may read; damage is told in words."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = [0]  # where each line begins, as far as it has been read

    def read_logs(self, log_number_from: int) -> Iterator[Act]:
        """Yield the acts from a number on.

        Raises:
            ClusterError: a line is not an act.
            DiskError: the file cannot be read.
        """
        if not self._path.exists():
            return
        content = read_bytes(self._path, DiskError)
        known = min(log_number_from, len(self._starts) - 1)
        whole = content.rfind(b"\n") + 1
        start, number = self._starts[known], known
        while start < whole:
            end = content.index(b"\n", start) + 1
            if number + 1 == len(self._starts):
                self._starts.append(end)
            if number >= log_number_from:
                yield self._act(content[start:end], number + 1)
            start, number = end, number + 1

    def append_logs(self, logs: list[Act]) -> None:
        """Add acts, all of them or none.

        Raises:
            DiskError: the file cannot be written.
        """
        lines = (json.dumps(log, separators=(",", ":")) for log in logs)
        append_text(self._path, "".join(f"{line}\n" for line in lines))

    def _act(self, line: bytes, number: int) -> Act:
        act = _parsed(line.decode("ascii", errors="replace"))
        if act is None:
            raise ClusterError(
                f"{self._path}:{number}: is damaged: it is not an act of a ledger. "
                f"`tuner repair {self._path.parent.name}` keeps all that is whole."
            )
        return act


def cut_half_line(journal: Path) -> None:
    """Cut off a last line that was only half written when its writer was killed.

    Raises:
        DiskError: the file cannot be written.
    """
    if not journal.exists():
        return
    content = read_bytes(journal, DiskError)
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        try:
            os.truncate(journal, whole)
        except OSError as error:
            raise cannot_write(journal, error) from None


@final
@dataclass(frozen=True)
class Repair:
    """What came of mending a journal.

    Attributes:
        kept: How many acts were whole.
        damaged: The numbers of the lines that were not, or only in part.
        restored: The trials whose line was damaged and was made again from their own files.
        lost: Those of which there is nothing else; they count as failed.
        backup: The journal as it was; None where nothing had to be repaired.
    """

    kept: int
    damaged: tuple[int, ...] = ()
    restored: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    backup: Path | None = None


def repair(folder: StudyFolder, name: str) -> Repair:
    """Repair the journal of a study that is not running, and return what was done.

    All whole acts stay as they are and in their order. The journal as it was is kept beside it.

    Raises:
        ConfigError: there is no journal.
        DiskError: it cannot be read or written.
    """
    if not folder.journal.exists():
        raise ConfigError(
            f"{folder.root} holds no ledger: there is no study, or its ledger is in a database."
        )
    text = read_bytes(folder.journal, DiskError).decode("ascii", errors="replace")
    lines = text.split("\n")[:-1]  # what follows the last line feed is not damage
    pieces: list[_Piece] = []
    damaged = []
    for number, line in enumerate(lines, start=1):
        of_line = list(_pieces(line)) or [""]
        pieces += of_line
        if any(isinstance(piece, str) for piece in of_line):
            damaged.append(number)
    kept = sum(isinstance(piece, dict) for piece in pieces)
    begun = any(isinstance(one, dict) and one["op_code"] == _CREATE_STUDY for one in pieces)
    if not damaged and begun:
        return Repair(kept)
    repaired, restored, lost = _repaired(pieces, folder.left_trials(), name)
    backup = _backup(folder.journal)
    write_text(
        folder.journal, "".join(f"{json.dumps(act, separators=(',', ':'))}\n" for act in repaired)
    )
    return Repair(kept, tuple(damaged), tuple(restored), tuple(lost), backup)


_Piece: TypeAlias = Act | str
"""A whole act, or what is left of a damaged one."""


def _parsed(text: str) -> Act | None:
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if not text[end:].strip() and _is_act(value) else None


def _is_act(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("worker_id"), str):
        return False
    fields = _FIELDS.get(value["op_code"]) if type(value.get("op_code")) is int else None
    return fields is not None and all(
        isinstance(value.get(field), kind) and not isinstance(value[field], bool)
        for field, kind in fields.items()
    )


def _pieces(line: str) -> Iterator[_Piece]:
    """Yield what a line holds; an act may stand behind one that was cut short."""
    line = line.strip("\0 \r\t")
    place = 0
    while place < len(line):
        start = line.find(_BEGINNING, place)
        if start < 0:
            start = len(line)
        if start > place:
            yield line[place:start]
        if start == len(line):
            return
        try:
            value, end = _DECODER.raw_decode(line, start)
            whole = _is_act(value)
        except (ValueError, RecursionError):
            whole, end = False, 0
        if whole:
            yield value
        else:
            further = line.find(_BEGINNING, start + 1)
            end = further if further > 0 else len(line)
            yield line[start:end]
        place = end


def _repaired(
    pieces: Sequence[_Piece], files: Mapping[int, TrialFile], name: str
) -> tuple[list[Act], list[int], list[int]]:
    """Return acts in which each trial has its number again, and which trials were made again.

    Optuna numbers trials by the order of their lines: one line less, and all that follows would
    be told of another trial. So a damaged line that began a trial must be replaced.
    """
    acts: list[Act] = []
    if not any(isinstance(one, dict) and one["op_code"] == _CREATE_STUDY for one in pieces):
        acts.append(_study(name))
    begins = _which_begin_trials(pieces, files)
    whole = [piece for piece in pieces if isinstance(piece, dict)]
    restored: list[int] = []
    lost: list[int] = []
    number = 0
    for place, piece in enumerate(pieces):
        if isinstance(piece, dict):
            if piece.get("trial_id") in lost:
                continue
            acts.append(piece)
            number += piece["op_code"] == _CREATE_TRIAL
        elif place in begins:
            made = _from_file(files.get(number), whole)
            (lost if made is None else restored).append(number)
            acts.append(made or _failed())
            number += 1
    return acts, restored, lost


def _which_begin_trials(pieces: Sequence[_Piece], files: Mapping[int, TrialFile]) -> set[int]:
    """Return the places of the damaged acts that began a trial.

    What is left of most says so. Of the others that is taken by which the acts after them, and
    the files of the trials, agree best with the numbers.
    """
    damaged = [place for place, piece in enumerate(pieces) if isinstance(piece, str)]
    kinds = {place: _kind(str(pieces[place])) for place in damaged}
    sure = {place for place, kind in kinds.items() if kind == _CREATE_TRIAL}
    unsure = [place for place, kind in kinds.items() if kind is None][:_MOST_GUESSES]
    guesses = [
        sure | {place for place, begins in zip(unsure, guess, strict=True) if begins}
        for guess in itertools.product((False, True), repeat=len(unsure))
    ]
    return min(guesses, key=lambda guess: (_contradictions(pieces, files, guess), len(guess)))


def _contradictions(
    pieces: Sequence[_Piece], files: Mapping[int, TrialFile], begins: set[int]
) -> int:
    number = wrong = 0
    for place, piece in enumerate(pieces):
        if isinstance(piece, str):
            number += place in begins
        elif piece["op_code"] == _CREATE_TRIAL:
            file = files.get(number)
            wrong += file is not None and _parameters(piece) != file.parameters
            number += 1
        elif "trial_id" in piece:
            wrong += piece["trial_id"] >= number
    return wrong


def _kind(rest: str) -> int | None:
    """Return the kind of a damaged act, if what is left of it tells."""
    digits = rest.removeprefix(_BEGINNING).partition(",")
    return int(digits[0]) if digits[1] and digits[0].isdecimal() else None


def _parameters(act: Act) -> dict[str, Any] | None:
    try:
        return {
            name: json_to_distribution(act["distributions"][name]).to_external_repr(value)
            for name, value in act.get("params", {}).items()
        }
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _from_file(file: TrialFile | None, acts: Sequence[Act]) -> Act | None:
    """Return the act that began a trial, from its file and another trial of the same space."""
    if file is None:
        return None
    for act in acts:
        if (
            act["op_code"] == _CREATE_TRIAL
            and act.get("params", {}).keys() == file.parameters.keys()
        ):
            try:
                params = {
                    name: json_to_distribution(text).to_internal_repr(file.parameters[name])
                    for name, text in act["distributions"].items()
                }
            except (KeyError, TypeError, ValueError):
                continue
            return {**act, "params": params, "user_attrs": {}, "state": TrialState.RUNNING}
    return None


def _failed() -> Act:
    """Return the act that begins a trial of which nothing is known, and ends it."""
    return {
        "op_code": _CREATE_TRIAL,
        "worker_id": "repair",
        "study_id": 0,
        "datetime_start": None,
        "state": TrialState.FAIL,
        "params": {},
        "distributions": {},
        "user_attrs": {"failure": _LOST},
    }


def _study(name: str) -> Act:
    directions = [2]  # Optuna's number for maximising
    return {
        "op_code": _CREATE_STUDY,
        "worker_id": "repair",
        "study_name": name,
        "directions": directions,
    }


def _backup(journal: Path) -> Path:
    """Keep the journal as it is under a name that is free."""
    for number in itertools.count(1):
        kept = journal.with_name(f"{journal.name}.damaged-{number}")
        if not kept.exists():
            break
    try:
        shutil.copy2(journal, kept)
    except OSError as error:
        raise cannot_write(kept, error) from None
    return kept
