"""A study in MLflow: one run for the study, and one below it for each trial."""

from contextlib import suppress
from pathlib import Path
from typing import final

from tuner import tracking
from tuner.errors import MissingExtra
from tuner.files.text_file import exists
from tuner.report import write_figures
from tuner.search.result import with_winners
from tuner.search.trackers._tracker import StudyTracker, TrackingPlace
from tuner.trial.records import StudyResultRecord, StudySummary, TrialEntry


@final
class MLflow(StudyTracker):
    """Sends a study to MLflow by a thread of its own; an MLflow that is away holds nothing up."""

    def __init__(self, summary: StudySummary, place: TrackingPlace) -> None:
        """Begin to send."""
        self._uid = summary.uid
        self._uri = tracking.located_uri(place.uri, place.folder)
        self._tracker = tracking.Tracker(place.uri, tracking.EXPERIMENT, summary, place.folder)
        self._sent: tracking.SyncReport | None = None
        self._tracker.start()

    @classmethod
    def check(cls, place: TrackingPlace) -> None:
        """Make sure that MLflow is installed and can keep runs there.

        Raises:
            MissingExtra: MLflow is not installed.
            ConfigError: MLflow cannot keep runs there.
        """
        tracking.check_tracking(place.uri, place.folder)

    def trial_changed(self, entry: TrialEntry) -> None:
        """Note a trial that was started, was continued or has ended."""
        self._tracker.trial_changed(entry)

    def study_finished(self, result: StudyResultRecord) -> None:
        """Note the winners, the report and the figures."""
        folder = result.summary.folder
        figures: tuple[Path, ...] = ()
        with suppress(MissingExtra):  # which is said of the report already
            figures = write_figures(result, folder / "figures")
        self._tracker.study_finished(with_winners(result), _report(folder), figures)

    def close(self) -> None:
        """Send what is left."""
        self._sent = self._tracker.close()

    def where(self) -> tuple[str, ...]:
        """Return the command that opens MLflow's pages, and the study's own."""
        lines = [f"MLflow:  {tracking.ui_command(self._uri)}"]
        if self._sent is not None and self._sent.experiment_id is not None:
            address, experiment = tracking.ui_address(self._uri), self._sent.experiment_id
            page = tracking.study_url(address, experiment, self._uid, charts=True)
            lines.append(f"         {page}")
        return tuple(lines)

    def missing(self) -> str | None:
        """Return what MLflow has not been sent, and how to send it."""
        return (self._sent.message or None) if self._sent is not None else None

    @classmethod
    def sync(cls, result: StudyResultRecord, place: TrackingPlace) -> str | None:
        """Send what MLflow has missed.

        Raises:
            MissingExtra: MLflow is not installed.
            ConfigError: MLflow cannot keep runs there, refuses, or the study is running now.
            ClusterError: MLflow cannot be reached at all.
        """
        folder = result.summary.folder
        sent = tracking.sync(
            place.uri,
            tracking.EXPERIMENT,
            with_winners(result),
            place.folder,
            report_path=_report(folder),
            figures=tuple(sorted((folder / "figures").glob("*.html"))),
        )
        return sent.message or None

    @classmethod
    def fetch(cls, place: TrackingPlace, study: str, epsilon: float | None, out: Path) -> float:
        """Write the bundle of a study's winner into a new folder; return its budget.

        Raises:
            MissingExtra: MLflow is not installed.
            ConfigError: MLflow shows no such study, or has no such bundle.
            ClusterError: MLflow cannot be reached.
        """
        uri = tracking.located_uri(place.uri, place.folder)
        return tracking.fetch_bundle(uri, tracking.EXPERIMENT, study, epsilon, out)


def _report(folder: Path) -> Path | None:
    path = folder / "report.html"
    return path if exists(path) else None
