"""A namespace of Kubernetes as a back end, each a RayJob."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

from tuner.launch.driver_log import LogSource, log_lines
from tuner.launch.following import FollowObserver, follow
from tuner.launch.kubernetes import lifecycle
from tuner.launch.kubernetes.client import KubernetesApi, connect
from tuner.launch.kubernetes.cluster import load_cluster
from tuner.launch.kubernetes.submit import submit
from tuner.launch.status import LaunchedStudy

if TYPE_CHECKING:
    from tuner.search import StudyConfig


@final
class KubernetesBackend:
    """The namespace that a described cluster has for studies."""

    def __init__(self, cluster: str, context: str | None) -> None:
        """Choose a cluster by name or file; nothing is asked of it yet.

        Raises:
            ConfigError: there is no such cluster, or its file breaks rules.
        """
        self.option = f"--cluster {cluster}"
        self._cluster = load_cluster(cluster)
        self._context = context
        self._connection = AsyncExitStack()
        self._connected: KubernetesApi | None = None

    async def __aenter__(self) -> Self:
        """Connect to the cluster that KUBECONFIG names."""
        api = connect(self._cluster.namespace, self._context)
        self._connected = await self._connection.enter_async_context(api)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """LogSource."""
        await self._connection.aclose()

    @property
    def description(self) -> str:
        """What it is called in a sentence."""
        return f"the namespace {self._cluster.namespace}"

    def preview(self, study: "StudyConfig") -> Sequence[Mapping[str, Any]]:
        """Return the manifests that would be sent."""
        # Asking for a study's status needs no model library.
        from tuner.launch.kubernetes.render import render

        return render(study, self._cluster).manifests()

    async def submit(self, study: "StudyConfig") -> bool:
        """Send a study; return whether that was needed, or it was there already."""
        from tuner.launch.kubernetes.render import render

        rendered = render(study, self._cluster)
        return await submit(self._api, rendered)

    async def status(self, name: str) -> LaunchedStudy:
        """Return how far a study is."""
        return await lifecycle.study_status(self._api, name)

    async def list_studies(self) -> list[LaunchedStudy]:
        """Return all studies of the namespace, without what holds them up."""
        return await lifecycle.list_studies(self._api)

    async def stop(self, name: str, *, wait_s: float) -> LaunchedStudy:
        """Suspend a study and return it once its pods are gone, or after `wait_s`."""
        return await lifecycle.stop(self._api, name, wait_s=wait_s)

    async def delete(self, name: str, *, wait_s: float) -> None:
        """Take a study and all that belongs to it off the cluster."""
        await lifecycle.delete(self._api, name, wait_s=wait_s)

    async def resume(self, name: str, *, wait_s: float) -> bool:
        """Have a study go on from its ledger; return whether that was needed."""
        return await lifecycle.resume(self._api, name, wait_s=wait_s)

    async def follow(self, name: str, observer: FollowObserver) -> LaunchedStudy:
        """Tell an observer how a study goes on; return it once it rests."""
        return await follow(self._api, name, observer)

    async def log_lines(
        self, name: str, part: LogSource, *, follow: bool, tail: int | None = None
    ) -> AsyncGenerator[str]:
        """Yield the lines of a part's log; with `follow`, also those to come."""
        lines = log_lines(self._api, name, part, follow=follow, tail=tail)
        async with aclosing(lines):
            async for line in lines:
                yield line

    @property
    def _api(self) -> KubernetesApi:
        if self._connected is None:
            raise RuntimeError("A back end is asked within `async with`.")
        return self._connected
