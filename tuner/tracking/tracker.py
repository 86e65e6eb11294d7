"""The thread that shows a running study in MLflow, and the same thing done afterwards."""

import itertools
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import final

from tuner.errors import ConfigError, TunerError
from tuner.tracking.content import StudyView
from tuner.tracking.location import located_uri, masked
from tuner.tracking.projection import Projection, SyncReport
from tuner.tracking.session import brief_requests, quiet_here, require_mlflow
from tuner.trial.records import StudyResultRecord, StudySummary, TrialEntry, Winner

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_CLOSING_PAUSE_S = 0.5
# A search that has just ended may be in its last call still.
_PATIENCE_S = 5.0


def check_tracking(tracking_uri: str | None, folder: Path) -> None:
    """Make sure that MLflow is installed and can keep runs at the URI.

    Raises:
        MissingExtra: MLflow is not installed.
        ConfigError: MLflow cannot keep runs at the URI.
    """
    require_mlflow()
    located_uri(tracking_uri, folder)


@final
class Tracker:
    """Shows a study in MLflow while it runs; no method but the constructor waits or raises.

    One thread does all the sending. While the server is away the trials wait in memory, and on
    disk as the records that the study keeps anyway; they are sent when it returns, or by `sync`.
    """

    def __init__(
        self, tracking_uri: str | None, experiment: str, summary: StudySummary, folder: Path
    ) -> None:
        """Prepare to show the study; `folder` holds all studies and the default database.

        Raises:
            MissingExtra: MLflow is not installed.
            ConfigError: MLflow cannot keep runs at the URI.
        """
        check_tracking(tracking_uri, folder)
        self._summary = summary
        uri = located_uri(tracking_uri, folder)
        self._projection = Projection(uri, experiment, summary, folder)

        # What the study says, guarded together:
        self._guard = threading.Lock()
        self._entries: dict[int, TrialEntry] = {}
        # Per trial when its last news came: a pass under way sends older ones.
        self._unsent: dict[int, int] = {}
        self._news = itertools.count()
        self._study_unsent = True
        self._winners: tuple[Winner, ...] = ()
        self._report_path: Path | None = None
        self._figures: tuple[Path, ...] = ()
        self._finished = False
        # What the thread says:
        self._reason: str | None = None
        self._failing_since: float | None = None
        self._report = self._projection.report((), True, None)

        self._wake = threading.Event()
        self._closing = threading.Event()
        self._give_up = threading.Event()
        self._settings = ExitStack()
        self._thread = threading.Thread(target=self._work, name="tuner-tracking", daemon=True)

    def start(self) -> None:
        """Begin to send. A continued study hands over all its entries next."""
        self._settings.enter_context(brief_requests())
        self._wake.set()
        self._thread.start()

    def trial_changed(self, entry: TrialEntry) -> None:
        """Note a trial's present state."""
        with self._guard:
            self._entries[entry.number] = entry
            self._mark_unsent([entry.number])
        self._wake.set()

    def study_finished(
        self,
        result: StudyResultRecord,
        report_path: Path | None = None,
        figures: tuple[Path, ...] = (),
    ) -> None:
        """Note the winners, the report and the figures."""
        with self._guard:
            self._entries |= {entry.number: entry for entry in result.entries}
            self._winners = result.winners
            self._report_path, self._figures = report_path, figures
            self._finished = True
            self._mark_unsent(self._entries)  # the ranks concern every trial
        self._wake.set()

    def close(self, timeout_s: float = 20.0) -> SyncReport:
        """Send what is left, and return how far that went.

        It ends early where MLflow has refused or not answered for `timeout_s` seconds; one that has
        many trials or a large delta to take in is waited for. What is left then, `sync` sends.
        """
        closed = time.monotonic()
        with self._guard:
            if not self._finished:
                # No worker runs them any more; their runs must not look active.
                self._mark_unsent(n for n, e in self._entries.items() if not e.state.finished)
            # With the marks, or a pass could take them and still show the trials alive.
            self._closing.set()
        self._wake.set()
        while self._thread.is_alive():
            with self._guard:
                failing_since = self._failing_since
            now = time.monotonic()
            if failing_since is not None and now - max(failing_since, closed) > timeout_s:
                break
            self._thread.join(0.1)
        self._give_up.set()
        self._settings.close()
        with self._guard:
            return self._report.model_copy(
                update={
                    "unsent": tuple(sorted(self._unsent)),
                    "study_unsent": self._study_unsent,
                    "reason": self._reason,
                }
            )

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        with quiet_here(), ExitStack() as claim:
            claimed = False
            while not self._give_up.is_set():
                self._wake.wait()
                self._wake.clear()
                try:
                    if not claimed:
                        claim.enter_context(self._projection.claim())
                        claimed = True
                    was_last = self._send()
                    self._went_well()
                    pause_s = _FIRST_PAUSE_S
                    if was_last:
                        return
                    continue
                except ConfigError as error:
                    self._failed(str(error))
                    if self._closing.is_set():
                        return
                except TunerError as error:
                    self._failed(str(error))
                except Exception as error:
                    # A flaw in this thread must neither end the search nor pass unseen.
                    self._failed(masked(f"{type(error).__name__}: {error}"))
                self._wake.set()
                if self._closing.is_set():
                    self._give_up.wait(_CLOSING_PAUSE_S)
                else:
                    self._closing.wait(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _send(self) -> bool:
        """Make one pass over all that is unsent, and return whether nothing will follow it.

        Raises:
            ClusterError: MLflow is out of reach for now.
            ConfigError: MLflow refuses the study as a whole.
        """
        with self._guard:
            closing = self._closing.is_set()
            sending = dict(self._unsent)
            self._study_unsent = False
            view = StudyView(
                summary=self._summary,
                entries=dict(self._entries),
                winners=self._winners,
                report=self._report_path,
                figures=self._figures,
                live=not closing,
                finished=self._finished,
            )
        sent_all = False
        try:
            for number in self._projection.push(view, sorted(sending)):
                with self._guard:
                    # A pass after a new connection also names trials that were sent before.
                    if number in sending and self._unsent.get(number) == sending[number]:
                        del self._unsent[number]
                        self._failing_since = None
                if self._give_up.is_set():
                    return True
            sent_all = True
        finally:
            with self._guard:
                self._study_unsent |= not sent_all
                self._report = self._projection.report(self._unsent, self._study_unsent, None)
        return closing

    def _went_well(self) -> None:
        with self._guard:
            self._reason = self._failing_since = None

    def _failed(self, reason: str) -> None:
        with self._guard:
            self._reason = reason
            if self._failing_since is None:
                self._failing_since = time.monotonic()

    def _mark_unsent(self, numbers: Iterable[int]) -> None:
        self._unsent |= {number: next(self._news) for number in numbers}
        self._study_unsent = True


def sync(
    tracking_uri: str | None,
    experiment: str,
    result: StudyResultRecord,
    folder: Path,
    *,
    report_path: Path | None = None,
    figures: tuple[Path, ...] = (),
    timeout_s: float = 60.0,
) -> SyncReport:
    """Bring MLflow up to date with a study's records, and return what it shows now.

    What MLflow shows already is left alone, so this may be repeated at will.

    Raises:
        MissingExtra: MLflow is not installed.
        ConfigError: MLflow cannot keep runs at the URI, refuses, or the study is running now.
        ClusterError: MLflow cannot be reached at all.
    """
    check_tracking(tracking_uri, folder)
    summary = result.summary
    uri = located_uri(tracking_uri, folder)
    projection = Projection(uri, experiment, summary, folder)
    completed = sum(entry.state.has_answers for entry in result.entries)
    view = StudyView(
        summary=summary,
        entries={entry.number: entry for entry in result.entries},
        winners=result.winners,
        report=report_path,
        figures=figures,
        live=False,
        finished=bool(result.winners) or completed >= summary.trials,
    )
    unsent = set(view.entries)
    deadline = time.monotonic() + timeout_s
    with brief_requests(), quiet_here(), projection.claim(_PATIENCE_S):
        for number in projection.push(view, sorted(unsent)):
            unsent.discard(number)
            if time.monotonic() > deadline:
                return projection.report(unsent, True, f"{timeout_s:g} s were not enough")
    return projection.report(unsent, False, None)
