"""Where a study keeps its files, and how they are written so that a kill leaves whole ones."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from tuner.atomic_file import write_text
from tuner.errors import ConfigError
from tuner.evaluation.budget import epsilon_name
from tuner.records import TrialRecord

RECORD = "record.json"

R = TypeVar("R", bound=BaseModel)


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
class StudyFolder:
    """The folder of one study.

    ledger.journal      which trials exist and what they gave (Optuna's storage)
    driver.lock, .json  held by the process that runs the study, and which one that is
    trials/7/           record.json, and one bundle per budget that the trial kept
    places/7            the node that runs the trial now
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
        """Return the hash of the base model that the trials start from, once a worker knows it."""
        try:
            return str(json.loads(self.base.read_text(encoding="utf-8"))["fingerprint"])
        except OSError:
            return None

    def claim_base(self, fingerprint: str, text: str) -> None:
        """Make sure that all trials start from the same weights and are judged on the same text.

        Raises:
            ConfigError: the study began with others.
        """
        now = {"fingerprint": fingerprint, "text": text}
        try:
            known = json.loads(self.base.read_text(encoding="utf-8"))
        except OSError:
            write_text(self.base, json.dumps(now))
            return
        for key, what in (("fingerprint", "base weights"), ("text", "general text")):
            if known[key] != now[key]:
                raise ConfigError(
                    f"The study in {self.root} began with other {what} ({known[key][:12]}…) than "
                    f"there is now ({now[key][:12]}…). Give the new study another name."
                )

    def claim_companions(self, fingerprints: Mapping[str, str]) -> None:
        """Make sure that the models beside the base, by name, are the same in all trials.

        Raises:
            ConfigError: the study began with another one of that name.
        """
        for name, fingerprint in fingerprints.items():
            # A file for each: workers that meet different ones first write none over another.
            path = self.companions / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
            try:
                known = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
            except OSError:
                now = {"name": name, "fingerprint": fingerprint}
                write_text(path, json.dumps(now))
                continue
            if known != fingerprint:
                raise ConfigError(
                    f"The study in {self.root} began with other weights of {name}, which stands "
                    f"beside its base model ({known[:12]}…), than there are now "
                    f"({fingerprint[:12]}…). Put the same weights back, or give the new study "
                    "another name."
                )

    def read_trial(self, uid: str, number: int, parameters: dict[str, Any]) -> TrialFile | None:
        """Return what a worker left for exactly this trial, if it did."""
        try:
            text = (self.trial(number) / RECORD).read_text(encoding="utf-8")
        except OSError:
            return None
        found = TrialFile.model_validate_json(text)
        same = found.uid == uid and found.number == number and found.parameters == parameters
        return found if same else None

    def staging(self, number: int) -> Path:
        """Return a new folder in which a trial's files are gathered before they appear at once."""
        path = self.trials / f".{number}-{uuid4().hex}"
        path.mkdir(parents=True)
        return path

    def publish(self, staging: Path, file: TrialFile) -> None:
        """Let the gathered files of a trial appear, all at once, together with its record."""
        write_text(staging / RECORD, file.model_dump_json())
        target = self.trial(file.number)
        if self.read_trial(file.uid, file.number, file.parameters) is not None:
            # A worker that was believed dead has been first, with the same trial.
            shutil.rmtree(staging)
            return
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)

    def take_place(self, number: int, node: str) -> None:
        """Note on which of Ray's nodes a trial runs."""
        write_text(self.places / str(number), node)

    def place_of(self, number: int) -> str | None:
        """Return the node that was noted last for a trial, if any was."""
        try:
            return (self.places / str(number)).read_text(encoding="utf-8")
        except OSError:
            return None

    def leave_place(self, number: int) -> None:
        """Forget where a trial ran, before it is run anew."""
        (self.places / str(number)).unlink(missing_ok=True)

    def clear_staging(self) -> None:
        """Remove what workers of a killed study had begun to gather, and where they ran."""
        shutil.rmtree(self.places, ignore_errors=True)
        for leftover in self.trials.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)


def read_json(path: Path, into: type[R]) -> R:
    """Return what a file holds, as an `into`."""
    return into.model_validate_json(path.read_text(encoding="utf-8"))
