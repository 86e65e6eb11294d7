"""The one truth about which trials exist and what they gave: Optuna's storage, one writer.

A trial enters the ledger in one write, running and with all its hyperparameters; it is told its
result once. In between, everything can be killed: what a worker had finished lies in its trial's
folder and is adopted, what it had not is run again under the same number. Every write may be
repeated: whether an earlier attempt was kept is read first.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, final
from uuid import uuid4

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, create_trial
from optuna.trial import TrialState as OptunaState
from pydantic import SecretStr

from tuner.errors import ClusterError, ConfigError, DiskError, TunerError
from tuner.evaluation.deviation.budget import epsilon_of_name
from tuner.files.atomic_file import FULL, cannot_write
from tuner.files.file_lock import LockHeld, file_lock, is_locked
from tuner.files.text_file import exists, is_folder
from tuner.search.objective import Objective
from tuner.search.proposer import quiet_optuna
from tuner.search.space import Space
from tuner.search.storage.database import DEFAULT_PATIENCE_S, Database, DirectAccess, StorageAccess
from tuner.search.storage.folder import StudyFolder, TrialFile
from tuner.search.storage.journal import Journal, cut_half_line
from tuner.trial.records import TrialEntry, TrialState

_FAILURE = "failure"
_ASKED = "asked"
_MARK = "mark"

_ENTRY_STATE = {
    OptunaState.WAITING: TrialState.WAITING,
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETED,
    OptunaState.PRUNED: TrialState.FAILED,
    OptunaState.FAIL: TrialState.FAILED,
}


@final
class Ledger:
    """The trials of one study."""

    def __init__(
        self, folder: StudyFolder, study: optuna.Study, reach: StorageAccess, *, driven: bool
    ) -> None:
        self.folder = folder
        self._study = study
        self._reach = reach
        self._driven = driven
        self._files: dict[int, TrialFile] = {}

    @classmethod
    @contextmanager
    def drive(
        cls,
        folder: StudyFolder,
        name: str,
        storage: SecretStr | None = None,
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> Iterator["Ledger"]:
        """Open the ledger for writing, made anew if need be; nobody else can until it is closed.

        `patience_s` is how long the ledger's server may be away, now or later.

        Raises:
            ConfigError: another process drives this study, or the storage is not available.
            DiskError: the study's folder cannot be written.
            ClusterError: the ledger cannot be opened.
        """
        database = Database.at(storage, patience_s) if storage is not None else None
        with ExitStack() as exits:
            if database is None:
                exits.enter_context(_locked(folder))
            else:
                exits.enter_context(database.driven(name))
                # The lease decides. Where the folder's disk lends locks, who looks there sees us.
                with suppress(ConfigError, DiskError):
                    exits.enter_context(_locked(folder))
            exits.callback(folder.let_go)
            folder.hold()
            folder.clear_drafts()
            if storage is None:
                cut_half_line(folder.journal)
            reach = database or DirectAccess()
            with quiet_optuna(), _explained(storage):
                kept = _storage(folder, storage, database)
                study = reach.write(
                    lambda: optuna.create_study(
                        study_name=name,
                        storage=kept,
                        # Proposals are made outside; the study's own sampler is unused.
                        sampler=RandomSampler(),
                        direction="maximize",
                        load_if_exists=True,
                    )
                )
            yield cls(folder, study, reach, driven=True)

    @classmethod
    def read(
        cls,
        folder: StudyFolder,
        name: str,
        storage: SecretStr | None = None,
        patience_s: float = 0.0,
    ) -> "Ledger":
        """Open the ledger for reading, also while another process drives the study.

        Raises:
            ConfigError: there is no such study, or the storage is not available.
            ClusterError: the ledger cannot be opened.
        """
        if storage is None and not exists(folder.journal):
            raise ConfigError(f"There is no study in {folder.root}.")
        database = Database.at(storage, patience_s) if storage is not None else None
        reach = database or DirectAccess()
        with quiet_optuna(), _explained(storage):
            kept = _storage(folder, storage, database)
            known = reach.read(lambda: [study.study_name for study in kept.get_all_studies()])
            if name not in known:
                raise ConfigError(f"There is no study called {name!r} in the ledger.")
            study = reach.read(
                lambda: optuna.load_study(study_name=name, storage=kept, sampler=RandomSampler())
            )
        return cls(folder, study, reach, driven=is_driven(folder, name, database))

    @property
    def definition(self) -> dict[str, Any]:
        """What the study was asked to do when it began; empty before `set_definition`."""
        return dict(self._reach.read(lambda: self._study.user_attrs).get(_ASKED, {}))

    @property
    def uid(self) -> str:
        """The study's own mark; unlike its name it is never used again."""
        return str(self.definition["uid"])

    def set_definition(self, asked: Mapping[str, Any]) -> None:
        """Write down what the study is asked to do; once and for all."""
        self._reach.write(lambda: self._study.set_user_attr(_ASKED, dict(asked)))

    def add(self, parameters: Mapping[str, Any], space: Space) -> int:
        """Return the number of a new trial, now running with these hyperparameters."""
        # One write: there is no moment at which a number exists without its hyperparameters.
        mark = uuid4().hex
        trial = create_trial(
            state=OptunaState.RUNNING,
            params=dict(parameters),
            distributions=space.active(parameters),
            user_attrs={_MARK: mark},
        )

        def write() -> int:
            if self._marked(mark) is None:
                self._study.add_trial(trial)
            number = self._marked(mark)
            if number is None:
                raise ClusterError("The ledger has not kept a new trial. Start the study again.")
            return number

        return self._reach.write(write)

    def complete(self, number: int, objective: Objective, failure: str | None = None) -> None:
        """Tell what a trial was worth; `failure` says why it counts as failed, if it does.

        A trial that has been told is left as it is.
        """

        def write() -> None:
            trial = self._running(number)
            if trial is None:
                return
            # A crash between these writes leaves the trial running, and they are repeated.
            for name, violation in objective.constraints.items():
                if name not in trial.constraints:
                    trial.set_constraint(name, violation)
            if failure is not None:
                trial.set_user_attr(_FAILURE, failure)
            with quiet_optuna():
                self._study.tell(number, objective.value)

        self._reach.write(write)

    def fail(self, number: int, reason: str) -> None:
        """Tell that a trial gave nothing to learn from: a bug, or a worker that kept dying."""

        def write() -> None:
            trial = self._running(number)
            if trial is None:
                return
            trial.set_user_attr(_FAILURE, reason)
            with quiet_optuna():
                self._study.tell(number, state=OptunaState.FAIL)

        self._reach.write(write)

    def renew_lease(self) -> None:
        """Make sure that this process still drives the study.

        Raises:
            ClusterError: another driver has taken over, or the ledger has been away too long.
        """
        self._reach.write(lambda: None)

    def history(self) -> list[FrozenTrial]:
        """Return all trials in Optuna's words, for the sampler."""
        return self._reach.read(lambda: list(self._study.get_trials(deepcopy=False)))

    def running(self) -> list[int]:
        """Return the numbers that have no result yet, or whose record is no longer whole."""
        return [trial.number for trial in self.history() if self._is_to_run(trial)]

    def parameters(self, number: int) -> dict[str, Any]:
        """Return the hyperparameters of a trial, named as in its space."""
        return dict(self.history()[number].params)

    def trials(self) -> list[TrialEntry]:
        """Return every trial with its record."""
        return [self._entry(trial) for trial in self.history()]

    def trial(self, number: int) -> TrialEntry:
        """Return one trial with its record."""
        return self._entry(self.history()[number])

    def left_behind(self, number: int) -> TrialFile | None:
        """Return what the trial's worker wrote when it ended, if it did."""
        if number not in self._files:
            file = self.folder.read_trial(self.uid, number, self.parameters(number))
            if file is None:
                return None
            self._files[number] = file
        return self._files[number]

    def _is_to_run(self, trial: FrozenTrial) -> bool:
        if trial.state is OptunaState.COMPLETE:
            return self.left_behind(trial.number) is None
        return not trial.state.is_finished()

    def _marked(self, mark: str) -> int | None:
        trials = self._study.get_trials(deepcopy=False)
        marked = (trial.number for trial in trials if trial.user_attrs.get(_MARK) == mark)
        return next(marked, None)

    def _running(self, number: int) -> Trial | None:
        trial = self._study.get_trials(deepcopy=False)[number]
        return None if trial.state.is_finished() else Trial(self._study, trial._trial_id)

    def _entry(self, trial: FrozenTrial) -> TrialEntry:
        state = _ENTRY_STATE[trial.state]
        if state is TrialState.RUNNING and not self._driven:
            state = TrialState.WAITING  # until the study is continued
        failure = trial.user_attrs.get(_FAILURE)
        if failure is not None:
            state = TrialState.FAILED
        file = self.left_behind(trial.number) if state.finished else None
        if state is TrialState.COMPLETED and file and file.record and file.record.pruned:
            state = TrialState.PRUNED
        return TrialEntry(
            number=trial.number,
            state=state,
            parameters=dict(trial.params),
            record=file.record if file else None,
            started=_aware(trial.datetime_start),
            finished=_aware(trial.datetime_complete),
            failure=failure,
            bundles=tuple(self._bundles(trial.number)) if state.finished else (),
        )

    def _bundles(self, number: int) -> Iterator[tuple[float, Path]]:
        folder = self.folder.trial(number)
        if is_folder(folder):
            for path in sorted(folder.iterdir()):
                epsilon = epsilon_of_name(path.name)
                if epsilon is not None and is_folder(path):
                    yield epsilon, path


@contextmanager
def idle(folder: StudyFolder) -> Iterator[None]:
    """Make sure that nobody runs a study whose ledger is a file, and keep others from it.

    Raises:
        ConfigError: another process runs it.
        DiskError: the folder cannot be written, or its disk lends no locks.
    """
    with _locked(folder):
        yield


def is_driven(folder: StudyFolder, name: str, database: Database | None) -> bool:
    """Return whether a process is running the study now.

    Raises:
        ConfigError: the ledger's server does not let us in.
        ClusterError: it has been away too long.
    """
    return is_locked(folder.lock) if database is None else database.is_driven(name)


def _storage(folder: StudyFolder, url: SecretStr | None, database: Database | None) -> BaseStorage:
    if database is not None:
        return database.storage()
    if url is not None:
        return RDBStorage(url.get_secret_value())
    return JournalStorage(Journal(folder.journal))


def _check_place(folder: StudyFolder) -> None:
    """Refuse a folder that no study can be kept in: no room made later would help."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in FULL:
            raise cannot_write(folder.root, error) from None
        raise ConfigError(
            f"The study cannot be kept in {folder.root}: {error.strerror}. Choose another folder "
            "with --folder."
        ) from None


@contextmanager
def _locked(folder: StudyFolder) -> Iterator[None]:
    """Hold the lock of a study's folder.

    Raises:
        ConfigError: another process holds it, or the folder is not one that can be written.
        DiskError: the disk is full, or lends no locks.
    """
    _check_place(folder)
    with ExitStack() as held:
        try:
            # A reader that looks whether anybody drives holds the lock for a moment.
            held.enter_context(file_lock(folder.lock, timeout_s=1))
        except LockHeld:
            holder = folder.read_holder() or "another process"
            raise ConfigError(
                f"The study in {folder.root} is being run by {holder}. "
                "Wait until it ends, or stop it first."
            ) from None
        yield


@contextmanager
def _explained(url: SecretStr | None) -> Iterator[None]:
    """Turn a database's complaint into ours, without the URL, which may hold a password."""
    try:
        yield
    except TunerError:
        raise
    except Exception as error:
        what = "database" if url is not None else "file"
        raise ClusterError(
            f"The ledger's {what} cannot be opened ({type(error).__name__})."
            + ("" if url is not None else f" {error}")
        ) from None


def _aware(moment: datetime | None) -> datetime | None:
    return moment.astimezone() if moment is not None else None


def reasons(entries: Sequence[TrialEntry], most: int = 3) -> list[str]:
    """Return why trials failed, the commonest first, each with how often."""
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.failure is not None:
            counts[entry.failure] = counts.get(entry.failure, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])[:most]
    return [f"{count} × {reason}" for reason, count in ranked]
