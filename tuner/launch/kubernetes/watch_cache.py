"""The objects of one kind as they are now, kept so by a watch through whatever happens to it."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import final

from tuner.errors import AccessDenied, ClusterError
from tuner.launch.kubernetes.client import Expired, Kind, KubernetesApi, Manifest

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


def pauses(first: float = _FIRST_PAUSE_S, longest: float = _LONGEST_PAUSE_S) -> "_Pauses":
    """Return how long to wait before each try, twice as long each time."""
    return _Pauses(first, longest)


@final
class _Pauses:
    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def restart(self) -> None:
        """Begin again, since a try went well."""
        self._next = self._first

    async def __call__(self) -> None:
        """Wait. Nobody else who was cut off at the same time waits as long."""
        await asyncio.sleep(self._next * random.uniform(0.5, 1.0))
        self._next = min(2 * self._next, self._longest)


@final
class Mirror:
    """Objects of one kind by name. `keep` must run for them to be up to date."""

    def __init__(
        self,
        api: KubernetesApi,
        kind: Kind,
        changed: Callable[[], None],
        troubled: Callable[[str | None], None],
        *,
        labels: str = "",
        fields: str = "",
    ) -> None:
        self.objects: dict[str, Manifest] = {}
        self._api = api
        self._kind = kind
        self._labels = labels
        self._fields = fields
        self._changed = changed
        self._troubled = troubled
        self._version: str | None = None

    async def read(self) -> None:
        """Read all anew.

        Raises:
            ClusterError: Kubernetes cannot be reached, or refuses.
        """
        objects, self._version = await self._api.list(self._kind, self._labels, fields=self._fields)
        self.objects = {one["metadata"]["name"]: one for one in objects}
        self._changed()

    async def keep(self) -> None:
        """Keep the objects up to date for ever; reports a lost connection and reconnects.

        Raises:
            AccessDenied: Kubernetes lets us no longer, or never did.
        """
        pause = pauses()
        while True:
            try:
                if self._version is None:
                    await self.read()
                    self._troubled(None)
                async for is_news in self._follow(self._version or ""):
                    self._troubled(None)
                    if is_news:
                        pause.restart()
            except Expired:
                self._version = None
            except AccessDenied:
                raise
            except ClusterError as error:
                self._troubled(str(error))
            # Also after an orderly end: a server that ends every watch at once is not hurried.
            await pause()

    async def _follow(self, since: str) -> AsyncGenerator[bool]:
        """Yield whenever the server speaks: whether something has changed."""
        changes = self._api.watch(self._kind, since, self._labels, fields=self._fields)
        async with aclosing(changes):
            async for event in changes:
                self._version = event.version
                if event.type == "BOOKMARK":
                    yield False
                    continue
                name = str(event.content["metadata"]["name"])
                if event.type == "DELETED":
                    self.objects.pop(name, None)
                else:
                    self.objects[name] = event.content
                self._changed()
                yield True
