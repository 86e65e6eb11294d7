"""Ray's job server: the few things that we ask of it, typed, and what it refuses in words."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final
from urllib.parse import urlsplit

import httpx2

from tuner.errors import AccessDenied, ClusterError, ConfigError, MissingExtra

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")

OLDEST_RAY = (2, 52)
"""The first Ray with tokens; what tuner is installed with."""

_ANSWERS_WITHIN_S = 10.0
# Loggers by the names of Ray's modules, of which the second is private.
_NOISY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")


class JobState(StrEnum):
    """What Ray says of a job; there are no others."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@final
@dataclass(frozen=True)
class SeenJob:
    """A job of Ray at one moment."""

    id: str
    state: JobState
    message: str
    exit_code: int | None
    metadata: Mapping[str, str]
    began: bool
    """Whether its command was started, with the files that it came with."""
    started: datetime | None
    ended: datetime | None


@final
@dataclass(frozen=True)
class SeenNode:
    """What a node of a Ray cluster offers to all."""

    cpus: float
    gpus: float


def check_address(address: str) -> str:
    """Return the address of a job server without a slash at its end.

    Raises:
        ConfigError: it is none, or holds a password.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise ConfigError(f"--ray-address is not an address: {address!r}.") from None
    if "@" in address:
        raise ConfigError(
            "--ray-address must hold no user and no password; a token is given by RAY_AUTH_TOKEN."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--ray-address must be the address of Ray's job server, such as "
            f"http://head:8265, but got {address!r}."
        )
    return address.rstrip("/")


@final
class RayJobs:
    """The job server at an address. The token comes from RAY_AUTH_MODE and RAY_AUTH_TOKEN."""

    def __init__(self, address: str, client: "JobSubmissionClient") -> None:
        self.address = address
        self._client = client

    @classmethod
    async def connect(cls, address: str) -> "RayJobs":
        """Return the job server at an address, which has answered.

        Raises:
            MissingExtra: Ray's job client is not installed.
            ClusterError: nobody answers, or somebody other than a job server of a Ray that we
                know; AccessDenied where the token is missing or wrong.
        """
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise MissingExtra("ray", "launch") from None
        await _check_answers(address)
        client = await _asked(address, lambda: JobSubmissionClient(address))
        # Ray's client has no public word for the cluster's version, but keeps it.
        _check_version(address, str(getattr(client, "_server_ray_version", None) or ""))
        return cls(address, client)

    async def jobs(self) -> list[SeenJob]:
        """Return all jobs that were submitted to the cluster in its life.

        Raises:
            ClusterError: the cluster cannot be reached, or refuses.
        """
        jobs = await _asked(self.address, self._client.list_jobs)
        return [_seen(one) for one in jobs if one.submission_id]

    async def job(self, id: str) -> SeenJob:
        """Return a job as it is now.

        Raises:
            ClusterError: there is none, or the cluster cannot be reached, or refuses.
        """
        return _seen(await _asked(self.address, lambda: self._client.get_job_info(id)))

    async def log(self, id: str) -> str:
        """Return all that a job has written.

        Raises:
            ClusterError: there is none, or the cluster cannot be reached, or refuses.
        """
        return str(await _asked(self.address, lambda: self._client.get_job_logs(id)))

    async def stop(self, id: str) -> None:
        """Tell a job to end; it does so by itself.

        Raises:
            ClusterError: there is none, or the cluster cannot be reached, or refuses.
        """
        await _asked(self.address, lambda: self._client.stop_job(id))

    async def submit(
        self, id: str, entrypoint: str, metadata: Mapping[str, str], folder: Path | None
    ) -> None:
        """Start a job, in a copy of a folder of this machine if one is given.

        Raises:
            ClusterError: there was a job of that id before, or the cluster cannot be reached, or
                refuses.
        """
        environment = {} if folder is None else {"working_dir": str(folder)}
        await _asked(
            self.address,
            lambda: self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=id,
                metadata=dict(metadata),
                runtime_env=environment,
            ),
        )

    async def nodes(self) -> list[SeenNode]:
        """Return what each living node offers.

        Raises:
            ClusterError: the cluster cannot be reached, or refuses.
        """
        from ray.util.state import list_nodes

        nodes = await _asked(
            self.address,
            lambda: list_nodes(address=self.address, filters=[("state", "=", "ALIVE")]),
        )
        offers = [one.resources_total or {} for one in nodes]
        return [SeenNode(float(one.get("CPU", 0)), float(one.get("GPU", 0))) for one in offers]


async def _check_answers(address: str) -> None:
    """Refuse an address at which nobody answers in time: Ray's own client would wait for ever."""
    try:
        async with httpx2.AsyncClient(timeout=_ANSWERS_WITHIN_S) as client:
            answer = await client.get(f"{address}/api/version")
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise _unreachable(address, error) from None
    if answer.status_code == 404:
        raise _no_job_server(address)


async def _asked(address: str, ask: Callable[[], T]) -> T:
    """Return what Ray's client answers; its errors become ours."""
    from ray.exceptions import AuthenticationError
    from requests import RequestException

    # What Ray tells of its uploads does not concern a reader.
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return await asyncio.to_thread(ask)
    except AuthenticationError:
        raise AccessDenied(
            f"The Ray cluster at {address} does not let you in: its token is missing or wrong. "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token."
        ) from None
    except (ConnectionError, RequestException) as error:
        raise _unreachable(address, error) from None
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        # Also an answer that is not JSON, or none of the kind that was asked for.
        raise ClusterError(f"The Ray cluster at {address} did not do it: {error}") from None


def _unreachable(address: str, error: Exception) -> ClusterError:
    why = str(error) or type(error).__name__
    return ClusterError(
        f"The Ray cluster at {address} cannot be reached ({why}). Is its job server there? It is "
        "part of ray[default], and listens at --dashboard-host and --dashboard-port of `ray start`."
    )


def _no_job_server(address: str) -> ClusterError:
    return ClusterError(
        f"There is a server at {address}, but no job server of Ray. Give the address of the "
        "dashboard, by default port 8265, of a cluster that was installed with ray[default]."
    )


def _check_version(address: str, version: str) -> None:
    parts = version.split(".")
    if version and tuple(int(part) if part.isdigit() else 0 for part in parts[:2]) < OLDEST_RAY:
        wanted = ".".join(map(str, OLDEST_RAY))
        raise ClusterError(
            f"The cluster at {address} has Ray {version}, but tuner needs {wanted} or later there."
        )


def _seen(job: Any) -> SeenJob:
    try:
        state = JobState(str(job.status))
    except ValueError:
        raise ClusterError(f"Ray says of a job that it is {job.status}, unknown to us.") from None
    return SeenJob(
        id=str(job.submission_id),
        state=state,
        message=job.message or "",
        exit_code=job.driver_exit_code,
        metadata=job.metadata or {},
        began=job.driver_node_id is not None,
        started=_moment(job.start_time),
        ended=_moment(job.end_time),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
