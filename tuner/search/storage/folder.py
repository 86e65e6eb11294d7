"""Where a study keeps its files, and how they are written so that a kill leaves whole ones."""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, final

from pydantic import BaseModel, ConfigDict

from tuner.errors import ConfigError, DiskError
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.files.atomic_file import (
    cannot_write,
    is_untouched,
    remove_abandoned_drafts,
    whole_folder,
    write_text,
)
from tuner.files.json_file import validate_json
from tuner.files.text_file import is_file, read_bytes
from tuner.search.schedulers import Curve
from tuner.trial.records import TrialRecord

RECORD = "record.json"

R = TypeVar("R", bound=BaseModel)

# What earlier versions called the drafts of their files, folders, bundles and reports.
_OLD_DRAFT: Final = re.compile(r"\..+-[0-9a-f]{32}|\..+\.\d+\.part|\.report\.html\.draft")


@final
class TrialFile(BaseModel):
    """What a worker leaves for the driver when a trial has ended, before it reports.

    `uid` and `parameters` say which trial of which study it was; a file that was left by another
    is never taken for this one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: str
    number: int
    parameters: dict[str, Any]
    record: TrialRecord | None
    crash: str | None = None
    """The exception that no editor should raise, where one did."""


@final
class _NotedCurve(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: str
    curve: Curve


@final
class Holder(BaseModel):
    """The process that runs a study."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class _Claim(BaseModel):
    model_config = ConfigDict(frozen=True)

    fingerprint: str


@final
class _BaseClaim(_Claim):
    text: str


class _Torn(ConfigError):
    """A file of a study that holds something other than what was written."""


@final
class StudyFolder:
    """The folder of one study.

    ledger.journal      which trials exist and what they gave (Optuna's storage)
    driver.lock, .json  held by the process that runs the study, and which one that is
    trials/7/           record.json, and one bundle per budget that the trial kept
    places/7            the node that runs the trial now
    curves/7.json       how each epoch of the trial went, where a scheduler is asked
    confirm/, test/     what was measured after the search
    winners/0.001/      the selected bundle per budget, with its certificate
    base.json           which weights the trials started from
    companions/         which other models stood beside them
    result.json         all of it in one file
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.journal = self.root / "ledger.journal"
        self.lock = self.root / "driver.lock"
        self.holder = self.root / "driver.json"
        self.trials = self.root / "trials"
        self.places = self.root / "places"
        self.curve_files = self.root / "curves"
        self.base = self.root / "base.json"
        self.companions = self.root / "companions"
        self.test_base = self.root / "test" / "base.json"
        self.result = self.root / "result.json"

    def trial(self, number: int) -> Path:
        """Return the folder of a trial; it exists once the trial has ended."""
        return self.trials / str(number)

    def bundle(self, number: int, epsilon: float) -> Path:
        """Return the folder of the delta that a trial offers for a budget."""
        return self.trial(number) / epsilon_name(epsilon)

    def winner(self, epsilon: float) -> Path:
        """Return the folder of the bundle that was selected for a budget."""
        return self.root / "winners" / epsilon_name(epsilon)

    def confirmation(self, epsilon: float, number: int) -> Path:
        """Return the file of a trial's certificate on fresh text."""
        return self.root / "confirm" / epsilon_name(epsilon) / f"{number}.json"

    def retest(self, epsilon: float, number: int, seed: int) -> Path:
        """Return the file of a winner's result on the test split with one seed."""
        return self.root / "test" / epsilon_name(epsilon) / f"{number}-seed{seed}.json"

    def base_fingerprint(self) -> str | None:
        """Return the hash of the base model that the trials start from, once a worker knows it.

        Raises:
            ConfigError: the file that says so is damaged.
        """
        known = self._claim(self.base, _BaseClaim)
        return None if known is None else known.fingerprint

    def claim_base(self, fingerprint: str, text: str) -> None:
        """Make sure that all trials start from the same weights and are judged on the same text.

        Raises:
            ConfigError: the study began with others, or the file that says so is damaged.
            DiskError: the folder cannot be written.
        """
        now = _BaseClaim(fingerprint=fingerprint, text=text)
        known = self._claim(self.base, _BaseClaim)
        if known is None:
            write_text(self.base, now.model_dump_json())
            return
        for what, before, after in (
            ("base weights", known.fingerprint, now.fingerprint),
            ("general text", known.text, now.text),
        ):
            if before != after:
                raise ConfigError(
                    f"The study in {self.root} began with other {what} ({before[:12]}…) than "
                    f"there is now ({after[:12]}…). Give the new study another name."
                )

    def _claim(self, path: Path, into: type[R]) -> R | None:
        try:
            return _read(path, into)
        except _Torn as error:
            raise ConfigError(
                f"{error} It says which weights and text the study began with. If they are still "
                "the same, delete the file: the next `tuner search` writes it anew."
            ) from None

    def claim_companions(self, fingerprints: Mapping[str, str]) -> None:
        """Make sure that the models beside the base, by name, are the same in all trials.

        Raises:
            ConfigError: the study began with another one of that name.
        """
        for name, fingerprint in fingerprints.items():
            # A file for each: workers that meet different ones first write none over another.
            path = self.companions / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
            known = self._claim(path, _Claim)
            if known is None:
                write_text(path, json.dumps({"name": name, "fingerprint": fingerprint}))
            elif known.fingerprint != fingerprint:
                raise ConfigError(
                    f"The study in {self.root} began with other weights of {name}, which stands "
                    f"beside its base model ({known.fingerprint[:12]}…), than there are now "
                    f"({fingerprint[:12]}…). Put the same weights back, or give the new study "
                    "another name."
                )

    def read_trial(self, uid: str, number: int, parameters: dict[str, Any]) -> TrialFile | None:
        """Return what a worker left for exactly this trial, if it did and it is whole.

        Raises:
            DiskError: it is there and cannot be read.
        """
        file = read_whole(self.trial(number) / RECORD, TrialFile)
        if file is None:
            return None
        same = file.uid == uid and file.number == number and file.parameters == parameters
        return file if same else None

    def left_trials(self) -> dict[int, TrialFile]:
        """Return what workers have left of trials, of whatever study, by their numbers.

        Raises:
            DiskError: a record cannot be read.
        """
        files = {}
        for path in self.trials.glob("*/"):
            if path.name.isdecimal():
                file = read_whole(path / RECORD, TrialFile)
                if file is not None and file.number == int(path.name):
                    files[file.number] = file
        return files

    @contextmanager
    def publishing(self, file: TrialFile) -> Iterator[Path]:
        """Give a folder to gather the files of a trial in; they appear with its record, at once.

        Raises:
            DiskError: they cannot be written.
        """
        target = self.trial(file.number)
        try:
            with whole_folder(target) as draft:
                yield draft
                write_text(draft / RECORD, file.model_dump_json())
                if self.read_trial(file.uid, file.number, file.parameters) is not None:
                    # A worker that was believed dead has been first, with the same trial.
                    raise _OutrunError
                if target.exists():
                    shutil.rmtree(target)
        except _OutrunError:
            return

    def hold(self) -> None:
        """Write down that this process runs the study.

        Raises:
            DiskError: the folder cannot be written.
        """
        holder = Holder(pid=os.getpid(), host=socket.gethostname())
        write_text(self.holder, holder.model_dump_json())
        try:
            self.trials.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.trials, error) from None

    def read_holder(self) -> Holder | None:
        """Return the process that runs the study, or that ran it last and was killed."""
        with suppress(DiskError):
            return read_whole(self.holder, Holder)
        return None

    def let_go(self) -> None:
        """Forget which process runs the study."""
        with suppress(OSError):
            self.holder.unlink(missing_ok=True)

    def take_place(self, number: int, node: str) -> None:
        """Note on which of Ray's nodes a trial runs, if it can be written."""
        with suppress(DiskError):
            write_text(self.places / str(number), node)

    def place_of(self, number: int) -> str | None:
        """Return the node that was noted last for a trial, if any was."""
        try:
            return (self.places / str(number)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def leave_place(self, number: int) -> None:
        """Forget where a trial ran, before it is run anew.

        Raises:
            DiskError: the folder cannot be written.
        """
        path = self.places / str(number)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None

    def note_curve(self, uid: str, curve: Curve) -> None:
        """Note how a trial of the study `uid` goes, in place of what was noted before.

        Raises:
            DiskError: the folder cannot be written.
        """
        noted = _NotedCurve(uid=uid, curve=curve)
        write_text(self.curve_files / f"{curve.number}.json", noted.model_dump_json())

    def curves(self, uid: str) -> list[Curve]:
        """Return how the trials of the study `uid` go or went, by their numbers.

        Raises:
            DiskError: a file cannot be read.
        """
        files = (path for path in self.curve_files.glob("*.json") if path.stem.isdecimal())
        noted = (read_whole(path, _NotedCurve) for path in files)
        ours = (file.curve for file in noted if file is not None and file.uid == uid)
        return sorted(ours, key=lambda curve: curve.number)

    def confirmed(self, epsilon: float) -> set[int]:
        """Return the trials that a file of certificates is about, whole or not."""
        files = self.confirmation(epsilon, 0).parent.glob("*.json")
        return {int(path.stem) for path in files if path.stem.isdecimal()}

    def clear_drafts(self) -> None:
        """Remove what killed processes had begun to write, and where their trials ran."""
        shutil.rmtree(self.places, ignore_errors=True)
        folders = [self.root, self.trials, self.curve_files, self.companions]
        folders.append(self.root / "winners")
        for phase in ("confirm", "test"):
            folders += [self.root / phase, *(self.root / phase).glob("*/")]
        for folder in folders:
            remove_abandoned_drafts(folder)
            for path in list(folder.glob(".*")):
                if _OLD_DRAFT.fullmatch(path.name) and is_untouched(path):
                    _remove(path)


def read_whole(path: Path, into: type[R]) -> R | None:
    """Return what a file holds, as an `into`; None where there is none, or not a whole one.

    Raises:
        DiskError: it is there and cannot be read.
    """
    try:
        return _read(path, into)
    except _Torn:
        return None


def _read(path: Path, into: type[R]) -> R | None:
    if not is_file(path):
        return None
    content = read_bytes(path, DiskError)
    try:
        return validate_json(content.decode("utf-8"), into, str(path), _Torn)
    except UnicodeDecodeError:
        raise _Torn(f"{path}: is damaged: it is not UTF-8.") from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class _OutrunError(Exception):
    """Another worker has left the trial's files."""
