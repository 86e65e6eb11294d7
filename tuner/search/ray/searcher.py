"""The bridge between the ledger and Ray Tune: proposals go out, results come back."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from ray.tune.search import Searcher

from tuner.errors import ConfigError, TunerError
from tuner.search.config import StudyConfig
from tuner.search.objective import objective_of
from tuner.search.proposer import Proposer
from tuner.search.ray.worker_failures import WorkerFailures
from tuner.search.space import Space
from tuner.search.storage.folder import TrialFile
from tuner.search.storage.ledger import Ledger
from tuner.trial.records import Outcome

JOB = "job"
"""The one key of a Tune trial's config: what to run, as JSON."""
ABORT = "abort"
"""The key of a Tune result that says why no trial of this study can run."""
WRONG_INPUT = "wrong_input"
"""The key of a Tune result that says whether the user can fix that."""

Listener = Callable[[int], None]


@final
class LedgerSearcher(Searcher):  # type: ignore[misc]  # ray is untyped
    """Hands out trials until the ledger holds as many as asked for. Ray's own state is not used.

    Trials that a killed driver left running come first: what their workers had finished is
    adopted, the others are run again with the same number and hyperparameters. `constraints` are
    the names of those that the trials are judged by beside the budget; `deaths` says which deaths
    of workers are held against a trial.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        config: StudyConfig,
        proposer: Proposer,
        *,
        constraints: Sequence[str] = (),
        deaths: WorkerFailures,
        on_change: Listener,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._constraints = constraints
        self._ledger = ledger
        self._space = space
        self._config = config
        self._proposer = proposer
        self._own_deaths = deaths.own
        self._on_change = on_change
        self._numbers: dict[str, int] = {}
        self._deaths: dict[int, list[str | None]] = {}
        self._deadline = (
            time.monotonic() + config.time_limit_s if config.time_limit_s is not None else None
        )
        self.trouble: TunerError | None = None
        """What the ledger said when it could not go on; Tune makes a text of it."""
        self.abort: str | None = None
        self.wrong_input = False
        """Why the search cannot go on, if it cannot."""
        self._unfinished = self._recover(ledger.running())

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial to run, or that there is none."""
        with self._keeping_errors():
            return self._next(trial_id)

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.abort is not None:
            return str(Searcher.FINISHED)
        if self._unfinished:
            number = self._unfinished.pop(0)
        elif len(self._ledger.history()) < self._config.trials and not self._out_of_time:
            number = self._propose()
        elif self._numbers:
            return None  # wait: a trial on its way may lose its worker and have to run again
        else:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = number
        self._ledger.folder.leave_place(number)
        self._on_change(number)
        return {JOB: json.dumps({"number": number, "parameters": self._ledger.parameters(number)})}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the ledger what the trial gave. Tune calls this once a trial is over for good."""
        with self._keeping_errors():
            self._end(trial_id, result)

    def _end(self, trial_id: str, result: dict[str, Any] | None) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        if result is not None and result.get(ABORT):
            # The trial stays in the ledger, running, for when the cause is gone.
            self.abort = str(result[ABORT])
            self.wrong_input = bool(result.get(WRONG_INPUT))
            return
        file = self._ledger.left_behind(number)
        if file is not None:
            self._tell(number, file)
        else:
            self._retry_or_fail(number)
        self._on_change(number)

    def take_back(self) -> None:
        """Let what runs be run again first, or adopt it if it has ended: its Ray is lost.

        It is not a worker's fault, so it does not count as a worker's death.
        """
        with self._keeping_errors():
            numbers = sorted(self._numbers.values())
            self._numbers.clear()
            self._unfinished = sorted({*self._unfinished, *self._recover(numbers)})
        for number in numbers:
            self._on_change(number)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: a trial reports once, at its end."""

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file where Tune wants one; the ledger is what lasts."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger was read when this was made."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher to restore it, which we never do."""
        return {}

    @property
    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except TunerError as error:
            self.trouble = error
            raise

    def _retry_or_fail(self, number: int) -> None:
        """Run a trial again whose worker died, or give it up.

        Tune could do this too, but not for a worker that dies between two trials.
        """
        self._deaths.setdefault(number, []).append(self._ledger.folder.place_of(number))
        deaths = self._own_deaths(self._deaths[number], most=self._config.max_failures)
        if deaths <= self._config.max_failures:
            self._unfinished.append(number)
        else:
            self._ledger.fail(
                number,
                f"Its worker died {deaths} time{'s' * (deaths > 1)}. Where memory runs out the "
                "system ends workers; fewer at a time need less.",
            )

    def _propose(self) -> int:
        history = self._ledger.history()
        return self._ledger.add(self._proposer.propose(history, len(history)), self._space)

    def _recover(self, running: Sequence[int]) -> list[int]:
        """Adopt what has ended of these trials, and return the others."""
        unfinished = []
        for number in running:
            file = self._ledger.left_behind(number)
            if file is None:
                unfinished.append(number)
            else:
                self._tell(number, file)
        return unfinished

    def _tell(self, number: int, file: TrialFile) -> None:
        record = file.record
        if record is None:
            self._ledger.fail(number, file.crash or "Unknown.")
            return
        objective = objective_of(
            record, self._config.rule, self._config.target_epsilon, self._constraints
        )
        failure = record.failure or "Unknown." if record.outcome is Outcome.FAILED else None
        self._ledger.complete(number, objective, failure)


def read_job(config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the number and the hyperparameters that a Tune trial is about.

    Raises:
        ConfigError: the trial was not made by a `LedgerSearcher`.
    """
    try:
        job = json.loads(config[JOB])
        return int(job["number"]), dict(job["parameters"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"Not a trial of a study: {error}") from None
