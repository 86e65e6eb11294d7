"""What the parts of a launched study write, from whichever pod plays the part at the time."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import StrEnum
from typing import final

from tuner.errors import AccessDenied, ClusterError, ConfigError
from tuner.launch.kubernetes.client import POD, KubernetesApi
from tuner.launch.kubernetes.labels import ROLE_LABEL, STUDY_LABEL
from tuner.launch.kubernetes.lifecycle import study_status
from tuner.launch.kubernetes.observed import SeenPod
from tuner.launch.kubernetes.watch_cache import pauses

_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class LogSource(StrEnum):
    """Whose log is meant."""

    DRIVER = "driver"
    HEAD = "head"
    AUTOSCALER = "autoscaler"


# The pod that submits repeats what the driver says, and outlives the cluster.
_PLACES = {
    LogSource.DRIVER: ("submitter", "ray-job-submitter"),
    LogSource.HEAD: ("head", "ray-head"),
    LogSource.AUTOSCALER: ("head", "autoscaler"),
}


@final
class _ReadPosition:
    """How far the log of one container has been read."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.read_until = ""


async def log_lines(
    api: KubernetesApi, name: str, part: LogSource, *, follow: bool, tail: int | None = None
) -> AsyncGenerator[str]:
    """Yield the lines of a part's log; with `follow`, also those to come, over lost attempts.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: there is no log yet, or Kubernetes cannot be reached or refuses.
    """
    position = _ReadPosition("")
    pause = pauses(_PAUSE_S, _LONGEST_PAUSE_S)
    seen = False
    while True:
        try:
            study = await study_status(api, name)
            pod = await _newest(api, study.name, part)
        except ConfigError:
            if seen:
                return  # it has been deleted
            raise
        except AccessDenied:
            raise
        except ClusterError:
            if not (seen and follow):
                raise
            await pause()
            continue
        seen = True
        if pod is not None and pod.metadata.uid != position.uid:
            position = _ReadPosition(pod.metadata.uid)
        if pod is not None:
            lines = _read(api, pod, part, position, follow=follow, tail=tail)
            try:
                async with aclosing(lines):
                    async for line in lines:
                        pause.restart()
                        yield line
            except AccessDenied:
                raise
            except ClusterError:
                # The connection is lost, or the pod: the next look tells.
                if not follow:
                    raise
        if not follow:
            if pod is None:
                why = "".join(f"\n  {one}" for one in study.reasons)
                raise ClusterError(
                    f"The {part.value} of {study.name} has written nothing yet: {study.words}.{why}"
                )
            return
        if study.rests:
            return
        await pause()


async def _newest(api: KubernetesApi, name: str, part: LogSource) -> SeenPod | None:
    """Return the latest pod that plays a part, once its container has started."""
    role, container = _PLACES[part]
    objects, _ = await api.list(POD, f"{STUDY_LABEL}={name},{ROLE_LABEL}={role}")
    pods = [SeenPod.model_validate(one) for one in objects]
    started = [pod for pod in pods if _has_started(pod, container)]
    return max(started, key=lambda one: one.metadata.created, default=None)


def _has_started(pod: SeenPod, container: str) -> bool:
    status = pod.container(container)
    return status is not None and (
        status.state.running is not None or status.state.terminated is not None
    )


async def _read(
    api: KubernetesApi,
    pod: SeenPod,
    part: LogSource,
    position: _ReadPosition,
    *,
    follow: bool,
    tail: int | None,
) -> AsyncGenerator[str]:
    """Yield what has not been read yet; each line bears its time, which is cut off."""
    since = position.read_until
    lines = api.log(
        pod.metadata.name,
        _PLACES[part][1],
        follow=follow,
        tail=None if since else tail,
        since=since or None,
    )
    async with aclosing(lines):
        async for line in lines:
            when, _, text = line.partition(" ")
            # The server counts in whole seconds, so that it repeats some.
            if since and when <= since:
                continue
            position.read_until = when
            yield text
