"""Who follows a study while it runs: trackers, reports. None of their errors hurts the study."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, final

from tuner.errors import TunerError
from tuner.trial.records import StudyResultRecord, StudySummary, TrialEntry

_logger = logging.getLogger("tuner.search.study")


class StudyObserver(Protocol):
    """Follows a study, for instance in MLflow."""

    def trial_changed(self, entry: TrialEntry) -> object:
        """Note a trial that was started, was continued or has ended."""

    def study_finished(self, result: StudyResultRecord) -> object:
        """Note the winners."""

    def close(self) -> object:
        """Finish; also called when the study is interrupted."""


ObserverMaker = Callable[[StudySummary], StudyObserver]


@final
class Observers:
    """Several observers of one study, made as soon as it is known which base model it edits."""

    def __init__(self, makers: Sequence[ObserverMaker]) -> None:
        self._observers = [_Observed(make) for make in makers]

    @property
    def waiting(self) -> bool:
        """Whether one of them has not been made yet."""
        return any(observer.waiting for observer in self._observers)

    def begin(self, summary: StudySummary, entries: Sequence[TrialEntry]) -> None:
        """Make them, and tell them of the trials so far."""
        for observed in self._observers:
            if observed.waiting:
                observed.begin(summary)
                for entry in entries:
                    observed.tell(lambda observer, entry=entry: observer.trial_changed(entry))  # type: ignore[misc]

    def trial_changed(self, entry: TrialEntry) -> None:
        """Tell all of them of a trial."""
        self._tell(lambda observer: observer.trial_changed(entry))

    def study_finished(self, result: StudyResultRecord) -> None:
        """Tell all of them of the winners."""
        self._tell(lambda observer: observer.study_finished(result))

    def close(self) -> None:
        """Close all of them."""
        self._tell(lambda observer: observer.close())

    def _tell(self, tell: Callable[[StudyObserver], object]) -> None:
        for observed in self._observers:
            observed.tell(tell)


class _Observed:
    """One observer, whose errors are logged once and go no further."""

    def __init__(self, make: ObserverMaker) -> None:
        self._make = make
        self._observer: StudyObserver | None = None
        self._failed = False

    @property
    def waiting(self) -> bool:
        return self._observer is None and not self._failed

    def begin(self, summary: StudySummary) -> None:
        with self._logged():
            self._observer = self._make(summary)

    def tell(self, tell: Callable[[StudyObserver], object]) -> None:
        if self._observer is not None:
            with self._logged():
                tell(self._observer)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._failed:
                # A flaw of an observer is shown with its place; a full disk, say, in words.
                told = isinstance(error, TunerError | OSError)
                _logger.warning("An observer of the study failed: %s", error, exc_info=not told)
            self._failed = True
