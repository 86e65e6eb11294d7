"""The interface of trackers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tuner.errors import ConfigError
from tuner.trial.records import StudyResultRecord, StudySummary, TrialEntry


@final
@dataclass(frozen=True)
class TrackingPlace:
    """Where a tracker may show studies."""

    folder: Path
    """Holds all studies, each in a folder of its name."""
    uri: str | None = None
    """What `--tracking-uri` or MLFLOW_TRACKING_URI says, for trackers that have a server."""


class StudyTracker(ABC):
    """Follows studies from the command line, where a study says `tracking: package.module:Class`.

    A subclass is known by its file's name here, by an entry point of the group `tuner.trackers`, or
    as `package.module:Class`. A tracker runs in the driver, is told of all earlier trials when a
    study is continued, and may raise: the search goes on, and the first error is logged.
    """

    @abstractmethod
    def __init__(self, summary: StudySummary, place: TrackingPlace) -> None:
        """Begin to follow a study, as soon as it is known which base model it edits."""

    @classmethod  # noqa: B027  # most trackers write where the studies are
    def check(cls, place: TrackingPlace) -> None:
        """Make sure that studies can be shown there. Once a search runs, nothing stops it.

        Raises:
            ConfigError: they cannot.
            MissingExtra: a package is not installed.
        """

    @abstractmethod
    def trial_changed(self, entry: TrialEntry) -> None:
        """Note a trial that was started, was continued or has ended."""

    @abstractmethod
    def study_finished(self, result: StudyResultRecord) -> None:
        """Note the winners. The report, where one can be drawn, lies in the study's folder."""

    @abstractmethod
    def close(self) -> None:
        """Finish; also called when the study is interrupted."""

    def where(self) -> tuple[str, ...]:
        """Return where a person finds the study, line by line. Asked after `close`."""
        return ()

    def missing(self) -> str | None:
        """Return what is not shown, and what to do, in a sentence. Asked after `close`."""
        return None

    @classmethod
    def sync(cls, result: StudyResultRecord, place: TrackingPlace) -> str | None:
        """Show what was missed of a study that does not run; return what is still missing.

        Raises:
            ConfigError: this tracker only follows what runs, or refuses.
            ClusterError: its server cannot be reached.
        """
        raise ConfigError(f"The tracker {cls.__name__} shows a study only while it runs.")

    @classmethod
    def fetch(cls, place: TrackingPlace, study: str, epsilon: float | None, out: Path) -> float:
        """Write the bundle of a study's winner into a new folder; return its budget.

        Raises:
            ConfigError: this tracker keeps no bundles, or not this one.
            ClusterError: its server cannot be reached.
        """
        raise ConfigError(f"The tracker {cls.__name__} keeps no bundles.")
