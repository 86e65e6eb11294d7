"""Ray: where trials run. It holds only what is running; it can be killed without loss."""

import logging
import os
import secrets
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.error import TuneError

from tuner.errors import ClusterError, ConfigError, TunerError
from tuner.search.config import StudyConfig
from tuner.search.ray.local_ray import (
    LONGEST_FOLDER,
    ended_in_words,
    lost_for_good,
    lost_process,
    start_local_ray,
)
from tuner.search.ray.private_api import worker_deaths_unprinted
from tuner.search.ray.searcher import ABORT, WRONG_INPUT, LedgerSearcher, read_job
from tuner.search.ray.short_folder import short_folder
from tuner.search.ray.worker import Job, Worker, WorkerSetup
from tuner.search.ray.worker_failures import WorkerFailures
from tuner.search.storage.folder import StudyFolder

_TICK_S = 0.5
_LOSS_KNOWN_WITHIN_S = 30.0
"""Ray asks a silent node five times, every three seconds, before it calls it dead."""

_logger = logging.getLogger(__name__)

# Read by Ray when it starts, or by Tune when a search starts.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a worker stays where the command was started
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the study's to handle
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "600",  # a proposal may take a second
    "RAY_AIR_NEW_OUTPUT": "0",
    # Libraries of a worker may import MLflow, which then leaves a file in the user's home.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@final
class Executor:
    """A Ray cluster for the time of one study; this machine's own is started anew if it is lost."""

    def __init__(self, config: StudyConfig, scratch: Path) -> None:
        self._config = config
        self._scratch = scratch
        self._idle: list[_WorkerHandle] = []
        self._own_deaths = worker_failures_on(config.address).own
        self._losses = 0

    def search(
        self, searcher: LedgerSearcher, setup: WorkerSetup, on_tick: Callable[[], None]
    ) -> None:
        """Run the searcher's trials until it has no more, calling `on_tick` now and then.

        Raises:
            ConfigError: no trial of this study can run, and its description is why.
            ClusterError: no trial of this study can run, or Ray or the ledger failed.
            RayLost: Ray's processes on this machine keep ending.
        """
        while not self._survives(lambda: self._search(searcher, setup, on_tick)):
            searcher.take_back()
        if searcher.abort is not None:
            kind = ConfigError if searcher.wrong_input else ClusterError
            raise kind(searcher.abort)

    def perform(
        self,
        jobs: Sequence[Job],
        setup: WorkerSetup,
        *,
        on_done: Callable[[], None],
        on_tick: Callable[[], None],
    ) -> None:
        """Do all jobs, several at a time; those of a worker that died are done again.

        Raises:
            TunerError: a job cannot be done.
            ClusterError: workers keep dying.
            RayLost: Ray's processes on this machine keep ending.
        """
        undone = list(jobs)

        def finish(job: Job) -> None:
            undone.remove(job)
            on_done()

        while not self._survives(lambda: self._perform(undone, setup, finish, on_tick)):
            self._idle.clear()

    def _search(
        self, searcher: LedgerSearcher, setup: WorkerSetup, on_tick: Callable[[], None]
    ) -> None:
        trainable = tune.with_resources(
            tune.with_parameters(_TrialActor, setup=setup), self._resources
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=self._config.worker_count,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=RunConfig(
                name=f"search-{self._losses}",
                storage_path=str(self._scratch),
                verbose=0,
                failure_config=FailureConfig(max_failures=0),  # the searcher tries again
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_Ticker(self._watching(on_tick))],
            ),
        )
        with _quiet_ray_logging():
            try:
                tuner.fit()
            except TuneError:
                if searcher.trouble is None:
                    raise
                raise searcher.trouble from None

    def _perform(
        self,
        jobs: Sequence[Job],
        setup: WorkerSetup,
        on_done: Callable[[Job], None],
        on_tick: Callable[[], None],
    ) -> None:
        tick = self._watching(on_tick)
        waiting = deque(jobs)
        deaths: list[str | None] = []
        # Workers stay from one phase to the next: making an evaluator is what takes time.
        while len(self._idle) < min(self._config.worker_count, len(jobs)):
            self._idle.append(self._hand(setup))
        busy: dict[Any, tuple[_WorkerHandle, Job]] = {}
        while waiting or busy:
            while waiting and self._idle:
                hand, job = self._idle.pop(), waiting.popleft()
                busy[hand.actor.perform.remote(job)] = (hand, job)
            done, _ = ray.wait(list(busy), timeout=_TICK_S)
            for future in done:
                hand, job = busy.pop(future)
                try:
                    ray.get(future)
                except RayActorError as error:
                    deaths.append(hand.place())
                    own = self._own_deaths(deaths, most=self._config.max_failures)
                    if own > self._config.max_failures:
                        raise ClusterError(
                            f"Workers died {own} times after the search: {error}"
                        ) from None
                    waiting.append(job)
                    self._idle.append(self._hand(setup))
                except RayTaskError as error:
                    raise _cause(error) from None
                else:
                    self._idle.append(hand)
                    on_done(job)
            tick()

    def _watching(self, on_tick: Callable[[], None]) -> Callable[[], None]:
        """Return `on_tick`, with a look beforehand whether this machine's Ray still lives."""

        def tick() -> None:
            if self._config.address is None and lost_process() is not None:
                raise _Lost
            on_tick()

        return tick

    def _survives(self, work: Callable[[], None]) -> bool:
        """Do some work; False if Ray was lost meanwhile, and is there again for what is left."""
        try:
            work()
            return True
        except TunerError:
            raise
        except (Exception, _Lost):
            lost = lost_process() if self._config.address is None else None
            if lost is None:
                raise
        self._losses += 1
        if self._losses > self._config.max_failures:
            raise lost_for_good(lost)
        _logger.warning("Ray on this machine was lost: its %s. It is started again.", lost)
        with _quiet_ray_logging():
            ray.shutdown()
        _connect(self._config, self._scratch)
        return False

    @property
    def _resources(self) -> dict[str, float]:
        return {"CPU": 1, **({"GPU": self._config.gpus} if self._config.gpus else {})}

    def _hand(self, setup: WorkerSetup) -> "_WorkerHandle":
        remote = ray.remote(Worker)
        actor = remote.options(num_cpus=1, num_gpus=self._config.gpus).remote(setup)
        return _WorkerHandle(actor, actor.__ray_call__.remote(_node_of))


class _Lost(BaseException):
    """A process of Ray has ended. On an `Exception` Tune would clear up, with a dead Ray."""


@final
@dataclass(frozen=True)
class _WorkerHandle:
    """A worker for the phases after the search."""

    actor: Any
    node: Any
    """Will be the node that it runs on."""

    def place(self) -> str | None:
        """Return its node, also after its death; None where it has never run."""
        try:
            return str(ray.get(self.node, timeout=0))
        except RayError:
            return None


def _node_of(actor: object) -> str:
    """Return the node that an actor runs on; called within it."""
    return str(ray.get_runtime_context().get_node_id())


def worker_failures_on(address: str | None) -> WorkerFailures:
    """Return what tells which deaths came with a node of the cluster at `address`, or of ours."""
    # Whether this machine's own Ray is lost is known at once.
    return WorkerFailures(_is_lost, known_within_s=0.0 if address is None else _LOSS_KNOWN_WITHIN_S)


def _is_lost(node: str) -> bool:
    # A Ray of our own that is lost answers no question.
    return lost_process() is not None or not any(
        one["NodeID"] == node and one["Alive"] for one in ray.nodes()
    )


@contextmanager
def executor(config: StudyConfig, modules: Sequence[Path] = ()) -> Iterator[Executor]:
    """Start Ray on this machine, or connect to `config.address`; stop or leave it at the end.

    `modules` are files and packages of the user's, which are sent to the workers of a cluster.

    Raises:
        ConfigError: there is no folder in which Ray could keep its sockets.
        ClusterError: Ray cannot be started or reached.
    """
    with (
        short_folder(LONGEST_FOLDER) as scratch,
        _environment(config),
        # A dead worker's trial is run again, and if it is given up the ledger says so.
        worker_deaths_unprinted(),
    ):
        _connect(config, scratch, modules)
        try:
            with ended_in_words() if config.address is None else nullcontext():
                yield Executor(config, scratch)
        finally:
            with _quiet_ray_logging():
                ray.shutdown()


@contextmanager
def _environment(config: StudyConfig) -> Iterator[None]:
    """Set what Ray reads from the environment and the user has not set."""
    environment = dict(_ENVIRONMENT)
    if config.address is None and not any(key.startswith("RAY_AUTH") for key in os.environ):
        # Otherwise Ray leaves a token in the user's home, which later clusters stumble over.
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    missing = {key: value for key, value in environment.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            # Ray remembers a token for the life of the process; so must the next cluster.
            if key != "RAY_AUTH_TOKEN":
                os.environ.pop(key, None)


def _connect(config: StudyConfig, scratch: Path, modules: Sequence[Path] = ()) -> None:
    """Raise ClusterError if Ray cannot be started or reached."""
    try:
        with _quiet_ray_logging(), _signals_kept():
            if config.address is None:
                start_local_ray(config.worker_count, scratch)
            else:
                ray.init(
                    address=config.address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    # Beside what came with the job, if the driver is one of a cluster.
                    runtime_env={"py_modules": [str(path) for path in modules]} if modules else {},
                )
    except Exception as error:
        raise ClusterError(f"Ray cannot be started: {error}") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the previous handler of SIGTERM: Ray takes it, and ends a process with a dump."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


@final
class _TrialActor(tune.Trainable):  # type: ignore[misc]  # ray is untyped
    """A worker in Tune's words: one step is one trial, and the next trial reuses the actor."""

    def setup(self, config: dict[str, Any], setup: WorkerSetup) -> None:
        self._worker = Worker(setup)
        self._folder = StudyFolder(setup.root)
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._job = read_job(config)
        self._folder.take_place(self._job[0], _node_of(self))

    def step(self) -> dict[str, Any]:
        number, parameters = self._job
        try:
            self._worker.run(number, parameters)
        except Exception as error:
            text = str(error) if isinstance(error, TunerError) else repr(error)
            return {
                "done": True,
                ABORT: f"No trial of this study can run. {text}",
                WRONG_INPUT: isinstance(error, TunerError) and error.exit_code == 2,
            }
        return {"done": True, ABORT: ""}


@final
class _Ticker(Callback):  # type: ignore[misc]  # ray is untyped
    """Tells the study that time has passed, so that its progress moves between results."""

    def __init__(self, on_tick: Callable[[], None]) -> None:
        self._on_tick = on_tick

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks to restore them, which we never do."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._on_tick()


@contextmanager
def _quiet_ray_logging() -> Iterator[None]:
    """Keep Ray's remarks off the user's terminal; its errors come to us as exceptions."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.data", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: RayTaskError) -> Exception:
    """Return our own error from within Ray's, or one that quotes a foreign one."""
    if isinstance(error.cause, TunerError):
        return error.cause
    return ClusterError(f"A worker failed after the search: {error.cause!r}")
