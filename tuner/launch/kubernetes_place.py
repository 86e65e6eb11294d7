"""A namespace of Kubernetes as a place for studies, each a RayJob."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Any, final

from tuner.launch import lifecycle
from tuner.launch.api import KubernetesApi, connect
from tuner.launch.cluster import load_cluster
from tuner.launch.driver_log import Part, log_lines
from tuner.launch.following import Observer, follow
from tuner.launch.launched import LaunchedStudy
from tuner.launch.submission import submit

if TYPE_CHECKING:
    from tuner.search import StudyConfig


@final
class KubernetesPlace:
    """The namespace that a described cluster has for studies."""

    def __init__(self, cluster: str, context: str | None) -> None:
        """Choose a cluster by name or file; nothing is asked of it yet.

        Raises:
            ConfigError: there is no such cluster, or its file breaks rules.
        """
        self.option = f"--cluster {cluster}"
        self._cluster = load_cluster(cluster)
        self._context = context

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        return f"the namespace {self._cluster.namespace}"

    def preview(self, study: "StudyConfig") -> Sequence[Mapping[str, Any]]:
        """Return the manifests that would be sent."""
        # Whoever only asks how a study goes needs no model library.
        from tuner.launch.rendering import render

        return render(study, self._cluster).manifests()

    async def submit(self, study: "StudyConfig") -> bool:
        """Send a study; return whether that was needed, or it was there already."""
        from tuner.launch.rendering import render

        rendered = render(study, self._cluster)
        async with self._api() as api:
            return await submit(api, rendered)

    async def look(self, name: str) -> LaunchedStudy:
        """Return how far a study is."""
        async with self._api() as api:
            return await lifecycle.look(api, name)

    async def look_at_all(self) -> list[LaunchedStudy]:
        """Return all studies of the namespace, without what holds them up."""
        async with self._api() as api:
            return await lifecycle.look_at_all(api)

    async def stop(self, name: str, *, wait_s: float) -> LaunchedStudy:
        """Suspend a study and return it once its pods are gone, or after `wait_s`."""
        async with self._api() as api:
            return await lifecycle.stop(api, name, wait_s=wait_s)

    async def delete(self, name: str, *, wait_s: float) -> None:
        """Take a study and all that belongs to it off the cluster."""
        async with self._api() as api:
            await lifecycle.delete(api, name, wait_s=wait_s)

    async def resume(self, name: str, *, wait_s: float) -> bool:
        """Have a study go on from its ledger; return whether that was needed."""
        async with self._api() as api:
            return await lifecycle.resume(api, name, wait_s=wait_s)

    async def follow(self, name: str, observer: Observer) -> LaunchedStudy:
        """Tell an observer how a study goes on; return it once it rests."""
        async with self._api() as api:
            return await follow(api, name, observer)

    async def log_lines(
        self, name: str, part: Part, *, follow: bool, tail: int | None = None
    ) -> AsyncGenerator[str]:
        """Yield the lines of a part's log; with `follow`, also those to come."""
        async with self._api() as api:
            lines = log_lines(api, name, part, follow=follow, tail=tail)
            async with aclosing(lines):
                async for line in lines:
                    yield line

    def _api(self) -> AbstractAsyncContextManager[KubernetesApi]:
        return connect(self._cluster.namespace, self._context)
