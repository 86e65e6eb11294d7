"""A launched study is followed until it rests: its state in words, and what its driver writes."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Protocol, final

from tuner.errors import AccessDenied
from tuner.launch.driver_log import LogSource, log_lines
from tuner.launch.kubernetes.client import (
    EVENT,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    Kind,
    KubernetesApi,
    Manifest,
)
from tuner.launch.kubernetes.labels import ORIGIN_LABEL, STUDY_LABEL
from tuner.launch.kubernetes.lifecycle import study_status
from tuner.launch.kubernetes.observed import SeenEvent, SeenPod, SeenRayCluster, SeenRayJob
from tuner.launch.kubernetes.watch_cache import Mirror
from tuner.launch.status import LaunchedStudy, describe

# Some words depend on time alone.
_LOOK_EVERY_S = 5.0
# What the driver wrote last may come after the study's end is known.
_LAST_WORDS_WITHIN_S = 10.0


class FollowObserver(Protocol):
    """Who is told how a study goes on."""

    def changed(self, study: LaunchedStudy) -> None:
        """Take note that the study is in another state, or held up by something else."""
        ...

    def said(self, line: str) -> None:
        """Take note of a line of the driver's log."""
        ...

    def troubled(self, words: str | None) -> None:
        """Take note that the connection is lost, and with None that it is back."""
        ...


async def follow(api: KubernetesApi, name: str, observer: FollowObserver) -> LaunchedStudy:
    """Tell an observer how a study goes on; return it once it rests.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: Kubernetes cannot be reached at first, or refuses.
    """
    study = await study_status(api, name)
    observer.changed(study)
    if study.rests:
        return study
    return await _Follower(api, study, observer).run()


@final
class _Follower:
    def __init__(self, api: KubernetesApi, study: LaunchedStudy, observer: FollowObserver) -> None:
        self._api = api
        self._study = study
        self._observer = observer
        self._news = asyncio.Event()
        self._troubles: set[str] = set()
        name = study.name
        self._job = self._mirror(api, RAY_JOB, fields=f"metadata.name={name}")
        self._clusters = self._mirror(api, RAY_CLUSTER, labels=f"{ORIGIN_LABEL}={name}")
        self._pods = self._mirror(api, POD, labels=f"{STUDY_LABEL}={name}")
        self._events = self._mirror(api, EVENT)

    def _mirror(self, api: KubernetesApi, kind: Kind, **which: str) -> Mirror:
        def troubled(words: str | None) -> None:
            self._trouble(kind.plural, words)

        return Mirror(api, kind, self._news.set, troubled, **which)

    async def run(self) -> LaunchedStudy:
        """Return the study once it rests."""
        mirrors = (self._job, self._clusters, self._pods)
        for mirror in mirrors:
            await mirror.read()
        keepers = [asyncio.create_task(mirror.keep()) for mirror in mirrors]
        # Without the events we know less, but enough.
        aside = asyncio.create_task(self._keep_events())
        driver = asyncio.create_task(self._listen())
        try:
            while not (now := self._look()).rests:
                self._tell(now)
                await self._wait(keepers)
            # What the driver wrote comes before how it ended; its pod's log ends with it.
            await asyncio.wait([driver], timeout=_LAST_WORDS_WITHIN_S)
            self._tell(now)
        finally:
            for task in (*keepers, aside, driver):
                task.cancel()
            await asyncio.gather(*keepers, aside, driver, return_exceptions=True)
        return self._study

    async def _wait(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Wait for news; what ends a watch for good is raised."""
        news = asyncio.create_task(self._hear())
        awaited: list[asyncio.Task[None]] = [news, *keepers]
        done, _ = await asyncio.wait(
            awaited, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED
        )
        news.cancel()
        for keeper in keepers:
            if keeper in done:
                keeper.result()
        self._news.clear()

    async def _hear(self) -> None:
        await self._news.wait()

    def _tell(self, study: LaunchedStudy) -> None:
        """Tell what has changed, if anything has."""
        if study != self._study:
            self._study = study
            self._observer.changed(study)

    def _look(self) -> LaunchedStudy:
        manifest = self._job.objects.get(self._study.name)
        return self._study.deleted() if manifest is None else self._described(manifest)

    def _described(self, manifest: Manifest) -> LaunchedStudy:
        return describe(
            SeenRayJob.model_validate(manifest),
            [SeenRayCluster.model_validate(one) for one in self._clusters.objects.values()],
            [SeenPod.model_validate(one) for one in self._pods.objects.values()],
            [SeenEvent.model_validate(one) for one in self._events.objects.values()],
            namespace=self._api.namespace,
            now=datetime.now(UTC),
        )

    async def _keep_events(self) -> None:
        with suppress(AccessDenied):
            await self._events.keep()

    async def _listen(self) -> None:
        """Pass on what the driver writes; without the right to read it, nothing."""
        with suppress(AccessDenied):
            lines = log_lines(self._api, self._study.name, LogSource.DRIVER, follow=True)
            async with aclosing(lines):
                async for line in lines:
                    self._observer.said(line)

    def _trouble(self, what: str, words: str | None) -> None:
        before = bool(self._troubles)
        if words is None:
            self._troubles.discard(what)
        else:
            self._troubles.add(what)
        if words is not None and not before:
            self._observer.troubled(words)
        if before and not self._troubles:
            self._observer.troubled(None)
