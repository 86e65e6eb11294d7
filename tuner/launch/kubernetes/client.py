"""The Kubernetes API as tuner uses it: a few verbs on a few kinds, errors in words.

The official client logs in, encrypts and sends; what goes over the wire are plain values, since it
has no types for RayJobs.
"""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from tuner.errors import ClusterError, ConfigError, MissingExtra, unknown_name
from tuner.launch.kubernetes.api_errors import refusal_of

if TYPE_CHECKING:
    import aiohttp
    from kubernetes.aio.client import ApiClient, Configuration

Manifest = dict[str, Any]

_ANSWER_WITHIN_S = 30.0
_CONNECT_WITHIN_S = 10.0
# The server ends a watch after this long, and we begin the next one.
_WATCH_S = 240
_GONE = 410
_MERGE = "application/merge-patch+json"
_NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


@final
@dataclass(frozen=True)
class Kind:
    """A kind of object in a namespace, and where the API keeps it."""

    name: str
    plural: str
    group: str = ""
    version: str = "v1"

    def path(self, namespace: str, name: str | None = None) -> str:
        """Return where the API has all of a namespace, or one by name."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


RAY_JOB = Kind("RayJob", "rayjobs", "ray.io")
RAY_CLUSTER = Kind("RayCluster", "rayclusters", "ray.io")
CONFIG_MAP = Kind("ConfigMap", "configmaps")
POD = Kind("Pod", "pods")
SERVICE = Kind("Service", "services")
SECRET = Kind("Secret", "secrets")
EVENT = Kind("Event", "events")
JOB = Kind("Job", "jobs", "batch")


class Expired(Exception):
    """What a watch began with is too old for the server; list again."""


@final
@dataclass(frozen=True)
class Event:
    """A change that a watch tells; a bookmark changes nothing but says how far it has come."""

    type: str
    content: Manifest

    @property
    def version(self) -> str:
        """How far the watch has come."""
        return str(self.content["metadata"]["resourceVersion"])


@asynccontextmanager
async def connect(namespace: str, context: str | None = None) -> AsyncIterator["KubernetesApi"]:
    """Yield the API of the cluster that KUBECONFIG names, or that this process runs in.

    Raises:
        MissingExtra: the client is not installed.
        ConfigError: there is no cluster to talk to, or no such context.
    """
    try:
        from kubernetes.aio import client
    except ImportError:
        raise MissingExtra("kubernetes", "launch") from None
    async with client.ApiClient(await _configuration(context)) as api:
        yield KubernetesApi(api, namespace)


async def _configuration(context: str | None) -> "Configuration":
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    # A server that is busy says when to ask again.
    configuration.client_go_retries = True
    files = os.environ.get("KUBECONFIG") or "~/.kube/config"
    paths = [Path(path).expanduser() for path in files.split(os.pathsep) if path]
    if context is None and not any(path.exists() for path in paths):
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            raise ConfigError(
                f"There is no Kubernetes cluster to talk to: {files} does not exist. Set "
                "KUBECONFIG to the file of your cluster, or log in with its tool."
            ) from None
        return configuration
    try:
        contexts, _ = config.list_kube_config_contexts(config_file=files)
        names = [str(one["name"]) for one in contexts]
        if context is not None and context not in names:
            raise unknown_name(f"context in {files}", context, names)
        await config.load_kube_config(
            config_file=files, context=context, client_configuration=configuration
        )
    except ConfigError:
        raise
    except Exception as error:
        # A file of the user's, and programs that it names: what goes wrong has no common type.
        raise ConfigError(f"{files} does not lead to a Kubernetes cluster: {error}") from None
    return configuration


@final
class KubernetesApi:
    """The objects of one namespace."""

    def __init__(self, client: "ApiClient", namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    async def get(self, kind: Kind, name: str) -> Manifest | None:
        """Return an object, or None where there is none of that name.

        Raises:
            ClusterError: Kubernetes cannot be reached, or refuses.
        """
        what = f"read the {kind.name} {name}"
        return await self._answer("GET", kind, name, what, none_at=(404,))

    async def list(
        self, kind: Kind, labels: str = "", *, fields: str = "", names_only: bool = False
    ) -> tuple[list[Manifest], str]:
        """Return the objects that bear `labels`, and the version to watch from.

        With `names_only` no content is sent to us, which for Secrets is not ours to see.

        Raises:
            ClusterError: Kubernetes cannot be reached, or refuses.
        """
        query = _present(labelSelector=labels, fieldSelector=fields)
        accept = _NAMES_ONLY if names_only else "application/json"
        what = f"list {kind.plural}"
        answer = await self._answer("GET", kind, None, what, query=query, accept=accept)
        if answer is None:
            return [], ""
        return list(answer.get("items") or []), str(answer["metadata"]["resourceVersion"])

    async def create(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest | None:
        """Return the object that was made, or None where there is one of that name already.

        Raises:
            ConfigError: it is not valid, or there is no such namespace.
            ClusterError: Kubernetes cannot be reached, or refuses.
        """
        what = f"create the {kind.name} {manifest['metadata']['name']}"
        strict = [("fieldValidation", "Strict")]
        return await self._answer(
            "POST", kind, None, what, query=strict, body=manifest, none_at=(409,)
        )

    async def merge(self, kind: Kind, name: str, change: Mapping[str, Any]) -> Manifest | None:
        """Return an object after a merge patch, or None where there is none of that name.

        Raises:
            ConfigError: what it would become is not valid.
            ClusterError: Kubernetes cannot be reached, or refuses.
        """
        what = f"change the {kind.name} {name}"
        strict = [("fieldValidation", "Strict")]
        return await self._answer(
            "PATCH", kind, name, what, query=strict, body=change, content=_MERGE, none_at=(404,)
        )

    async def delete(self, kind: Kind, name: str) -> None:
        """Have an object deleted after everything that it owns; that takes a while.

        Raises:
            ClusterError: Kubernetes cannot be reached, or refuses.
        """
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        what = f"delete the {kind.name} {name}"
        await self._answer("DELETE", kind, name, what, body=body, none_at=(404,))

    async def watch(
        self, kind: Kind, since: str, labels: str = "", *, fields: str = ""
    ) -> AsyncGenerator[Event]:
        """Yield what changes after the version `since`, until the server ends the watch.

        The first is a bookmark, once the watch stands.

        Raises:
            Expired: the server has forgotten what happened since.
            ClusterError: the connection is lost, or Kubernetes refuses.
        """
        import aiohttp

        query = [
            ("watch", "true"),
            ("resourceVersion", since),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(_WATCH_S)),
            *_present(labelSelector=labels, fieldSelector=fields),
        ]
        patience = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_WITHIN_S, sock_read=_WATCH_S + _ANSWER_WITHIN_S
        )
        path, what = kind.path(self.namespace), f"watch {kind.plural}"
        async with self._open("GET", path, query=query, timeout=patience) as response:
            if response.status == _GONE:
                raise Expired
            await self._check(response, what, kind)
            yield Event("BOOKMARK", {"metadata": {"resourceVersion": since}})
            async for line in _lines(response):
                content = json.loads(line)
                event = Event(content["type"], content["object"])
                if event.type == "ERROR":
                    code = int(event.content.get("code", 500))
                    if code == _GONE:
                        raise Expired
                    raise refusal_of(
                        code, json.dumps(event.content), what, kind.group, self.namespace
                    )
                yield event

    async def log(
        self, pod: str, container: str, *, follow: bool, tail: int | None, since: str | None
    ) -> AsyncGenerator[str]:
        """Yield the lines of a container's log, each with the time it was written.

        Raises:
            ClusterError: the connection is lost, or there is no log yet.
        """
        import aiohttp

        query = [
            ("container", container),
            ("timestamps", "true"),
            *_present(
                follow="true" if follow else "",
                tailLines="" if tail is None else str(tail),
                sinceTime=since or "",
            ),
        ]
        patience = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_WITHIN_S, sock_read=None if follow else 60.0
        )
        path = POD.path(self.namespace, pod) + "/log"
        async with self._open("GET", path, query=query, accept="*/*", timeout=patience) as response:
            await self._check(response, f"read the log of the pod {pod}", POD)
            async for line in _lines(response):
                yield line.decode("utf-8", "replace")

    async def _answer(
        self,
        method: str,
        kind: Kind,
        name: str | None,
        what: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        none_at: Sequence[int] = (),
    ) -> Manifest | None:
        """Return the object that is answered; None at a status of `none_at` that is about it."""
        path = kind.path(self.namespace, name)
        async with self._open(
            method, path, query=query, body=body, content=content, accept=accept
        ) as response:
            if response.status in none_at:
                # Without a Status it is the path that is absent, not the object.
                text = await response.text()
                if '"Status"' in text and not _is_about_namespace(text):
                    return None
                raise refusal_of(response.status, text, what, kind.group, self.namespace)
            await self._check(response, what, kind)
            return dict[str, Any](json.loads(await response.read()))

    async def _check(self, response: "aiohttp.ClientResponse", what: str, kind: Kind) -> None:
        if not 200 <= response.status <= 299:
            text = await response.text()
            raise refusal_of(response.status, text, what, kind.group, self.namespace)

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        timeout: "aiohttp.ClientTimeout | None" = None,
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        """Yield the answer to a request; whatever the connection does becomes an error in words."""
        import aiohttp
        from kubernetes.aio.client import ApiException

        patience = timeout or aiohttp.ClientTimeout(
            total=_ANSWER_WITHIN_S, sock_connect=_CONNECT_WITHIN_S
        )
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list(query),
                header_params={"Accept": accept, "Content-Type": content},
                body=None if body is None else dict(body),
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(*request, _request_timeout=patience)
            response = answer.response
            try:
                yield response
            finally:
                # Closed, not released: a watch that is left has more to come.
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException) as error:
            raise ClusterError(self._unreachable(error)) from None

    def _unreachable(self, error: Exception) -> str:
        host = urlsplit(str(self._client.configuration.host)).netloc
        reason = str(error) or type(error).__name__
        return (
            f"The Kubernetes API at {host} cannot be reached: {reason}. Is the cluster up, and is "
            "this the right context (--context)?"
        )


async def _lines(response: "aiohttp.ClientResponse") -> AsyncIterator[bytes]:
    """Yield what is answered line by line, however long a line is."""
    rest = b""
    async for part in response.content.iter_any():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line:
                yield line
    if rest:
        yield rest


def _present(**parameters: str) -> list[tuple[str, str]]:
    return [(key, value) for key, value in parameters.items() if value]


def _is_about_namespace(text: str) -> bool:
    details = json.loads(text).get("details") or {}
    return bool(details.get("kind") == "namespaces")
