"""Carries a study's records into MLflow, one pass at a time."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict, Field

from tuner.errors import ClusterError, ConfigError
from tuner.files.file_lock import LockHeld, file_lock_if_any
from tuner.tracking.content import (
    RunContent,
    StudyView,
    study_content,
    study_uid,
    trial_content,
    trial_uid,
)
from tuner.tracking.location import masked
from tuner.tracking.runs import StudyRuns
from tuner.tracking.view import shared_view, view_key
from tuner.trial.records import StudySummary, TrialState

# After so many failures in a row the server, not one run, is taken to be the trouble.
_FAILURES_PER_PASS = 2
_PROBLEMS_TOLD = 3


@final
class SyncReport(BaseModel):
    """What MLflow shows of a study, and what it does not show yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    uri: str = Field(description="Where the runs are kept, without passwords.")
    experiment_id: str | None = None
    study_run: str | None = None
    trial_runs: dict[int, str] = {}
    unsent: tuple[int, ...] = Field(default=(), description="Trials that MLflow lacks in part.")
    study_unsent: bool = False
    reason: str | None = Field(default=None, description="Why something is unsent.")
    problems: tuple[str, ...] = Field(default=(), description="What MLflow will never take.")

    @property
    def complete(self) -> bool:
        """Whether MLflow shows all that the study's records hold."""
        return not (self.unsent or self.study_unsent or self.problems)

    @property
    def message(self) -> str:
        """What to tell the user, in a few lines; empty where all is well."""
        lines = list(self.problems[:_PROBLEMS_TOLD])
        if len(self.problems) > _PROBLEMS_TOLD:
            lines.append(f"... and {len(self.problems) - _PROBLEMS_TOLD} more of this kind.")
        if self.unsent or self.study_unsent:
            waiting = [f"{len(self.unsent)} trials"] if self.unsent else []
            waiting += ["the study's own run"] if self.study_unsent else []
            lines.append(
                f"Not yet in MLflow: {' and '.join(waiting)} ({self.reason or 'time ran out'}). "
                "Nothing is lost: run the same command again, or "
                f"`tuner status {self.study} --sync`, to send the rest from the study's records."
            )
        return "\n".join(lines)


class Projection:
    """A study's records on one side, its runs in MLflow on the other."""

    def __init__(self, uri: str, experiment: str, summary: StudySummary, studies: Path) -> None:
        self._uri = uri
        self._experiment = experiment
        self._summary = summary
        self._studies = studies
        self._connection: StudyRuns | None = None
        self._last_seen: StudyRuns | None = None
        self._problems: dict[str, str] = {}

    def claim(self, patience_s: float = 0.0) -> ExitStack:
        """Return a context in which nobody else sends this study.

        Raises:
            ConfigError: another one does.
        """
        claimed = ExitStack()
        try:
            claimed.enter_context(
                file_lock_if_any(self._summary.folder / "tracking.lock", patience_s)
            )
        except LockHeld:
            raise ConfigError(
                f"The study {self._summary.name!r} is being sent to MLflow by another process, "
                "most likely the search itself; sync it when that has ended."
            ) from None
        return claimed

    def push(self, view: StudyView, numbers: list[int]) -> Iterator[int]:
        """Send the given trials and the study; yield each number that needs no more sending.

        After a new connection all trials are compared, for a server may come back with less than
        it had.

        Raises:
            ClusterError: MLflow is out of reach for now; begin again later.
            ConfigError: MLflow refuses the study as a whole.
        """
        if self._connection is None:
            runs = StudyRuns(self._uri, self._experiment, self._summary.uid, self._studies)
            self._connection = self._last_seen = runs
            numbers = sorted(view.entries)
        try:
            yield from self._push(self._connection, view, numbers)
        except ClusterError:
            self._connection = None
            raise

    def report(self, unsent: Collection[int], study_unsent: bool, reason: str | None) -> SyncReport:
        """Return what MLflow shows as far as this process has seen."""
        runs = self._last_seen
        ids = runs.run_ids if runs else {}
        trials = {number: trial_uid(self._summary, number) for number in self._numbers(ids)}
        return SyncReport(
            study=self._summary.name,
            uri=masked(self._uri),
            experiment_id=runs.experiment_id if runs else None,
            study_run=ids.get(study_uid(self._summary)),
            trial_runs={number: ids[uid] for number, uid in trials.items()},
            unsent=tuple(sorted(unsent)),
            study_unsent=study_unsent,
            reason=reason if unsent or study_unsent else None,
            problems=tuple(self._problems.values()),
        )

    def _push(self, runs: StudyRuns, view: StudyView, numbers: list[int]) -> Iterator[int]:
        study = study_content(view)
        parent = runs.ensure(study)
        ranks = view.ranks()
        trouble: ClusterError | None = None
        failures = 0
        for number in numbers:
            uid = trial_uid(view.summary, number)
            # A trial that waits has nothing to show, and its run would count the wait as work.
            if view.entries[number].state is not TrialState.WAITING or runs.has(uid):
                try:
                    self._write(runs, trial_content(view, number, ranks), parent)
                except ClusterError as error:
                    trouble, failures = error, failures + 1
                    if failures >= _FAILURES_PER_PASS:
                        raise
                    continue
            failures = 0
            yield number
        self._write(runs, study, None)
        runs.offer_view(view_key(view.summary.uid), shared_view(view))
        if trouble:
            raise trouble

    def _write(self, runs: StudyRuns, content: RunContent, parent: str | None) -> None:
        try:
            if not runs.shows(content):
                runs.write(content, parent)
        except ConfigError as error:
            self._problems[content.uid] = str(error)
        else:
            self._problems.pop(content.uid, None)

    def _numbers(self, uids: dict[str, str]) -> list[int]:
        own = (uid.rpartition("/")[2] for uid in uids)
        return sorted(int(number) for number in own if number.isdigit())
