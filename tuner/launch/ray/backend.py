"""A Ray cluster that stands already, as a back end: each attempt is a job of Ray's."""

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, final

from tuner.errors import AccessDenied, ClusterError, ConfigError, unknown_name
from tuner.launch.driver_log import LogSource
from tuner.launch.following import FollowObserver
from tuner.launch.kubernetes.watch_cache import pauses
from tuner.launch.names import legal_name
from tuner.launch.ray.attempts import (
    CONTENT_KEY,
    STUDY_KEY,
    attempt_id,
    attempt_number,
    next_command,
)
from tuner.launch.ray.job_client import JobState, RayJobs, SeenJob, SeenNode, check_address
from tuner.launch.status import LaunchedStudy, LaunchState

if TYPE_CHECKING:
    from tuner.launch.ray.package import RayPackage
    from tuner.search import StudyConfig

# All jobs of one study, the first one first.
_Attempts: TypeAlias = tuple[SeenJob, ...]

_LOOK_EVERY_S = 1.0
_NOT_FOUND = 127

_STATES = {
    JobState.PENDING: LaunchState.STARTING,
    JobState.RUNNING: LaunchState.RUNNING,
    JobState.STOPPED: LaunchState.STOPPED,
    JobState.SUCCEEDED: LaunchState.COMPLETED,
    JobState.FAILED: LaunchState.FAILED,
}
_WORDS = {
    JobState.PENDING: "Ray has it, and has not started its driver yet",
    JobState.RUNNING: "the search runs",
    JobState.STOPPED: "stopped; its trials are in the ledger",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
}


@final
class RayBackend:
    """The Ray cluster at the address of its job server."""

    def __init__(self, address: str) -> None:
        """Choose a cluster; nothing is asked of it yet.

        Raises:
            ConfigError: this is not the address of a job server, or holds a password.
        """
        self.address = check_address(address)
        self.option = f"--ray-address {self.address}"
        self.description = f"the Ray cluster at {self.address}"
        self._connected: RayJobs | None = None

    async def __aenter__(self) -> Self:
        """Make sure that the job server answers, and lets us in."""
        self._connected = await RayJobs.connect(self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect; no connection is held."""
        self._connected = None

    @property
    def _jobs(self) -> RayJobs:
        if self._connected is None:
            raise RuntimeError("A back end is asked within `async with`.")
        return self._connected

    def preview(self, study: "StudyConfig") -> Sequence[Mapping[str, Any]]:
        """Return the job that would be submitted, with the names of the files that go along."""
        # Asking for a study's status needs no model library.
        from tuner.launch.ray.package import pack

        return [pack(study).preview()]

    async def submit(self, study: "StudyConfig") -> bool:
        """Send a study; return whether that was needed, or it was there already.

        One with other content takes the place of one of its name that rests. One that ended before
        its driver began has left no files to go on with, and is sent again.
        """
        from tuner.launch.ray.package import pack

        package = pack(study)
        there = (await _studies(self._jobs)).get(package.name)
        if there is not None:
            rests = self._described(there).rests
            if there[-1].metadata.get(CONTENT_KEY) == package.content:
                if not rests or _has_files(there):
                    return False
            elif not rests:
                raise ConfigError(
                    f"A study {package.name} with other content runs on {self.description} "
                    "already. Give this one another name, or end that one with `tuner stop` and "
                    "launch again: its trials stay in the ledger."
                )
        return await self._send(package, there)

    async def status(self, name: str) -> LaunchedStudy:
        """Return how far a study is."""
        return self._described(await self._find(name))

    async def list_studies(self) -> list[LaunchedStudy]:
        """Return all studies that were launched on the cluster in its life."""
        return [self._described(one) for _, one in sorted((await _studies(self._jobs)).items())]

    async def stop(self, name: str, *, wait_s: float) -> LaunchedStudy:
        """Stop a study and return it once its driver has ended, or after `wait_s`."""
        study = self._described(await self._find(name))
        if study.rests:
            return study
        await self._jobs.stop(_latest_id(study))
        deadline = time.monotonic() + wait_s
        while not study.rests and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_EVERY_S / 2)
            study = self._described(await self._find(name))
        return study

    async def delete(self, name: str, *, wait_s: float) -> None:
        """Refuse: Ray takes no id twice, so that a study forgotten could not be told from new.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"--delete must go with --cluster: {self.description} keeps a record of its jobs as "
            "long as it lives, and nothing else is left of a study that has been stopped."
        )

    async def resume(self, name: str, *, wait_s: float) -> bool:
        """Have a study go on as its next attempt; return whether that was needed."""
        attempts = await self._find(name)
        study = self._described(attempts)
        if not study.rests:
            return False
        if not _has_files(attempts):
            raise ConfigError(
                f"{study.study} ended on {self.description} before its files arrived; there is "
                "nothing to go on with. Send it again by `tuner launch`."
            )
        id = attempt_id(study.name, study.attempts + 1)
        await _submit_once(self._jobs, id, next_command(study.name), attempts[-1].metadata, None)
        return True

    async def follow(self, name: str, observer: FollowObserver) -> LaunchedStudy:
        """Tell an observer how a study goes on; return it once it rests."""
        await self._find(name)  # one that is out of reach at first is not waited for
        told: LaunchedStudy | None = None
        read, troubled, pause = 0, False, pauses()
        while True:
            try:
                study = self._described(await self._find(name))
                lines = await _lines(self._jobs, study, complete=study.rests)
                if told is not None and study.attempts != told.attempts:
                    read = 0  # each attempt has a log of its own
            except AccessDenied:
                raise
            except ClusterError as error:
                if not troubled:
                    observer.troubled(str(error))
                troubled = True
                await pause()
                continue
            if troubled:
                observer.troubled(None)
                troubled = False
                pause.restart()
            if told is None and not study.rests:
                observer.changed(study)
                told = study
            # What the driver wrote comes before how it ended.
            for line in lines[read:]:
                observer.said(line)
            read = len(lines)
            if study != told:
                observer.changed(study)
                told = study
            if study.rests:
                return study
            await asyncio.sleep(_LOOK_EVERY_S)

    async def log_lines(
        self, name: str, part: LogSource, *, follow: bool, tail: int | None = None
    ) -> AsyncGenerator[str]:
        """Yield the lines of the driver's log; with `follow`, also those to come."""
        if part is not LogSource.DRIVER:
            raise ConfigError(
                f"--of must be driver: the {part.value} of {self.description} is not the "
                "study's own."
            )
        id, read = "", 0
        while True:
            study = self._described(await self._find(name))
            lines = await _lines(self._jobs, study, complete=study.rests or not follow)
            if id != _latest_id(study):
                first = not id
                id, read = _latest_id(study), 0
                if first and tail is not None:
                    read = max(0, len(lines) - tail)
            for line in lines[read:]:
                yield line
            read = len(lines)
            if not follow or study.rests:
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _send(self, package: "RayPackage", there: _Attempts | None) -> bool:
        before = 0 if there is None else attempt_number(there[-1].id)
        study = placed(package.study, await self._jobs.nodes(), self.description)
        with tempfile.TemporaryDirectory(prefix="tuner-launch-") as folder:
            package.write(Path(folder), study)
            return await _submit_once(
                self._jobs,
                attempt_id(package.name, before + 1),
                package.entrypoint,
                package.metadata,
                Path(folder),
            )

    async def _find(self, name: str) -> _Attempts:
        studies = await _studies(self._jobs)
        attempts = studies.get(legal_name(name))
        if attempts is None:
            raise unknown_name(f"study on {self.description}", name, studies)
        return attempts

    def _described(self, attempts: _Attempts) -> LaunchedStudy:
        return describe(attempts, self.address)


def _has_files(attempts: _Attempts) -> bool:
    """Return whether the files of the latest content have reached the cluster."""
    latest = attempts[-1].metadata.get(CONTENT_KEY)
    return any(one.began for one in attempts if one.metadata.get(CONTENT_KEY) == latest)


def describe(attempts: Sequence[SeenJob], address: str) -> LaunchedStudy:
    """Return what the jobs of a study say together, the first one first."""
    job = attempts[-1]
    words = _WORDS[job.state]
    reasons: tuple[str, ...] = ()
    if job.state is JobState.FAILED:
        words += f": {_failure(job)}"
    elif job.state is JobState.PENDING and job.message:
        reasons = (_in_brief(job.message),)
    return LaunchedStudy(
        name=job.id.rpartition(".")[0],
        study=job.metadata[STUDY_KEY],
        place=address,
        state=_STATES[job.state],
        words=words,
        reasons=reasons,
        lost_attempts=sum(one.state is JobState.FAILED for one in attempts[:-1]),
        attempt=attempt_number(job.id),
        attempts=attempt_number(job.id),
        started=job.started,
        ended=job.ended,
    )


def _failure(job: SeenJob) -> str:
    if job.exit_code == _NOT_FOUND:
        return (
            "the cluster has no command `tuner`; install tuner[service] where its head runs, in "
            "the environment that `ray start` has"
        )
    if job.exit_code is not None and job.exit_code > 0:
        return f"the search ended with exit code {job.exit_code}; see `tuner logs`"
    return _in_brief(job.message) or "no reason given"


def _in_brief(message: str) -> str:
    """Return what Ray says on one line, with only the last line of a traceback in it."""
    told, _, trace = message.partition("Traceback (most recent call last)")
    return " ".join([*told.split(), *"".join(trace.strip().splitlines()[-1:]).split()])


async def _studies(jobs: RayJobs) -> dict[str, _Attempts]:
    """Return the studies among a cluster's jobs, by the names of their ids."""
    ours: dict[str, list[SeenJob]] = {}
    for job in await jobs.jobs():
        if STUDY_KEY in job.metadata and attempt_number(job.id):
            ours.setdefault(job.id.rpartition(".")[0], []).append(job)
    return {
        name: tuple(sorted(attempts, key=lambda one: attempt_number(one.id)))
        for name, attempts in ours.items()
    }


async def _submit_once(
    jobs: RayJobs, id: str, entrypoint: str, metadata: Mapping[str, str], folder: Path | None
) -> bool:
    """Submit a job; return whether it was us, or somebody else at the same time."""
    try:
        await jobs.submit(id, entrypoint, metadata, folder)
    except ClusterError:
        # Ray answers a used id as any other failure.
        if any(one.id == id for one in await jobs.jobs()):
            return False
        raise
    return True


async def _lines(jobs: RayJobs, study: LaunchedStudy, *, complete: bool) -> list[str]:
    """Return what the driver has written, without a last line that it has not ended yet."""
    if study.state is LaunchState.STARTING:
        return []
    try:
        written = await jobs.log(_latest_id(study))
    except AccessDenied:
        raise
    except ClusterError:
        # A driver that never began has no log, and a node that died took it along.
        if study.state is LaunchState.FAILED:
            return []
        raise
    lines = written.split("\n")
    last = lines.pop()
    return [*lines, last] if complete and last else lines


def _latest_id(study: LaunchedStudy) -> str:
    return attempt_id(study.name, study.attempts)


def placed(study: "StudyConfig", nodes: Iterable[SeenNode], words: str) -> "StudyConfig":
    """Return the study with as many trials at a time as the cluster has room for.

    A number that was asked for stands, since the cluster may grow.
    """
    nodes = list(nodes)
    gpus = study.gpus_per_worker
    if study.device == "cpu":
        gpus = 0.0
    elif gpus is None:
        gpus = 1.0 if any(node.gpus for node in nodes) else 0.0
    if study.workers != "auto":
        return study.model_copy(update={"gpus_per_worker": gpus})
    places = sum(
        min(int(node.cpus), int(node.gpus / gpus)) if gpus else int(node.cpus) for node in nodes
    )
    if not places:
        raise ConfigError(
            f"workers: {words} must have room for a trial (one CPU and {gpus:g} GPUs), but no node "
            "of it has now. Say how many `workers` it will have once it has grown."
        )
    return study.model_copy(
        update={"workers": study.workers_within(places), "gpus_per_worker": gpus}
    )
