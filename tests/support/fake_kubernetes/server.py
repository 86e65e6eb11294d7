"""The API over HTTP: paths, verbs, watches and logs, as far as a launch client needs them."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests.support.fake_kubernetes.store import Manifest, Refusal, Store

_GROUPS = {
    ("", "v1"): {
        "configmaps": "ConfigMap",
        "pods": "Pod",
        "services": "Service",
        "secrets": "Secret",
        "events": "Event",
    },
    ("batch", "v1"): {"jobs": "Job"},
    ("ray.io", "v1"): {"rayjobs": "RayJob", "rayclusters": "RayCluster"},
    ("kueue.x-k8s.io", "v1beta1"): {"workloads": "Workload"},
}
_CUSTOM = ("ray.io", "kueue.x-k8s.io")
_BOOKMARK_EVERY_S = 0.5


class FakeKubernetes:
    """An API server on a free port of the loopback. Use it as a context manager."""

    def __init__(self, *namespaces: str) -> None:
        self.store = Store(namespaces or ("tuner",))
        self.token: str | None = None
        self.forbidden: set[tuple[str, str]] = set()
        self.absent_groups: set[str] = set()
        self.quota: str | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.logs: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._cuts = 0
        self._closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.cut()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def write_kubeconfig(self, path: Path, **contexts: str) -> Path:
        """Write a kubeconfig; each context is a name and a server's address."""
        contexts = contexts or {"fake": self.url}
        user = {"token": self.token} if self.token else {}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": next(iter(contexts)),
                    "clusters": [
                        {"name": name, "cluster": {"server": url}} for name, url in contexts.items()
                    ],
                    "users": [{"name": name, "user": user} for name in contexts],
                    "contexts": [
                        {"name": name, "context": {"cluster": name, "user": name}}
                        for name in contexts
                    ],
                }
            )
        )
        return path

    def cut(self) -> None:
        """Cut every connection that streams, in the middle."""
        with self.store.changed:
            self._cuts += 1
            self.store.changed.notify_all()

    def write_log(self, pod: str, container: str, *lines: str) -> None:
        """Let a container write lines, a microsecond apart."""
        with self.store.changed:
            written = self.logs.setdefault((pod, container), [])
            for line in lines:
                nanoseconds = time.time_ns()
                second = datetime.fromtimestamp(nanoseconds // 10**9).astimezone()
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second.timestamp()))
                written.append((f"{stamp}.{nanoseconds % 10**9:09d}Z", line))
                time.sleep(1e-6)
            self.store.changed.notify_all()


def _handler(fake: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # A small answer must not wait for the acknowledgement of another.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def do_PATCH(self) -> None:
            self._serve()

        def do_DELETE(self) -> None:
            self._serve()

        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            try:
                _Request(fake, self, body).serve()
            except Refusal as refusal:
                self.answer(refusal.code, refusal.status)
            except _NoSuchPath:
                self.answer_text(404, "404 page not found\n")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def answer(self, code: int, content: Manifest) -> None:
            self._send(code, "application/json", json.dumps(content).encode())

        def answer_text(self, code: int, text: str) -> None:
            self._send(code, "text/plain; charset=utf-8", text.encode())

        def _send(self, code: int, type_: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", type_)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def stream(self, parts: Iterator[bytes]) -> None:
            """Send parts as they come; a cut ends the connection within a part."""
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for part in parts:
                if part == b"":
                    self.close_connection = True
                    with contextlib.suppress(OSError):  # the other side was faster
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

    return Handler


class _NoSuchPath(Exception):
    pass


class _Request:
    def __init__(self, fake: FakeKubernetes, handler: Any, body: bytes) -> None:
        self._fake = fake
        self._store = fake.store
        self._handler = handler
        self._body = body
        split = urlsplit(handler.path)
        self._query = dict(parse_qsl(split.query))
        self._parts = [unquote(part) for part in split.path.strip("/").split("/")]
        self._method = handler.command
        fake.requests.append((self._method, split.path, self._query))

    def serve(self) -> None:
        self._log_in()
        parts = self._parts
        if parts[0] == "api" and len(parts) >= 2:
            self._group, version, rest = "", parts[1], parts[2:]
        elif parts[0] == "apis" and len(parts) >= 3:
            self._group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise _NoSuchPath
        kinds = _GROUPS.get((self._group, version))
        known = kinds is not None and self._group not in self._fake.absent_groups
        if not known or len(rest) < 3 or rest[0] != "namespaces" or rest[2] not in kinds:
            raise _NoSuchPath
        self._api = f"{self._group}/{version}" if self._group else version
        self._namespace, self._plural = rest[1], rest[2]
        self._kind = kinds[self._plural]
        self._name = rest[3] if len(rest) > 3 else ""
        self._part = rest[4] if len(rest) > 4 else ""
        self._authorise()
        if self._part == "log":
            self._log()
            return
        if self._part not in ("", "status"):
            raise _NoSuchPath
        match self._method, bool(self._name):
            case "GET", True:
                self._answer(200, self._store.get(self._plural, self._namespace, self._name))
            case "GET", False if self._query.get("watch") in ("true", "1"):
                self._watch()
            case "GET", False:
                self._list()
            case "POST", False:
                self._create()
            case "PUT", True:
                self._answer(200, self._update(self._read()))
            case "PATCH", True:
                self._answer(200, self._patch())
            case "DELETE", True:
                self._delete()
            case _:
                raise Refusal(405, "MethodNotAllowed", "the server does not allow this method")

    def _log_in(self) -> None:
        if self._fake.token is None:
            return
        if self._handler.headers.get("Authorization") != f"Bearer {self._fake.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")

    def _authorise(self) -> None:
        verb = {"GET": "get" if self._name else "list", "POST": "create", "PATCH": "patch"}.get(
            self._method, self._method.lower()
        )
        if (verb, self._plural) in self._fake.forbidden:
            raise Refusal(
                403,
                "Forbidden",
                f'{self._plural} is forbidden: User "eve" cannot {verb} resource '
                f'"{self._plural}" in API group "{self._group}" in the namespace '
                f'"{self._namespace}"',
            )

    def _answer(self, code: int, content: Manifest) -> None:
        self._handler.answer(code, self._typed(content))

    def _typed(self, content: Manifest) -> Manifest:
        return {"apiVersion": self._api, "kind": self._kind, **content}

    def _read(self) -> Manifest:
        try:
            content = json.loads(self._body)
        except json.JSONDecodeError as error:
            raise Refusal(400, "BadRequest", f"error decoding the body: {error}") from None
        if not isinstance(content, dict):
            raise Refusal(400, "BadRequest", "the body must be an object")
        return content

    @property
    def _strict(self) -> bool:
        return self._query.get("fieldValidation") == "Strict"

    def _create(self) -> None:
        content = self._read()
        if content.get("kind") != self._kind or content.get("apiVersion") != self._api:
            raise Refusal(
                400,
                "BadRequest",
                f"the kind {content.get('kind')} of {content.get('apiVersion')} does not fit the "
                "path",
            )
        if self._fake.quota and self._plural == "rayjobs":
            raise Refusal(403, "Forbidden", f"rayjobs is forbidden: {self._fake.quota}")
        self._answer(201, self._store.create(self._plural, self._namespace, content, self._strict))

    def _update(self, content: Manifest) -> Manifest:
        return self._store.update(
            self._plural,
            self._namespace,
            self._name,
            content,
            status=self._part == "status",
            strict=self._strict,
        )

    def _patch(self) -> Manifest:
        type_ = self._handler.headers.get("Content-Type", "").partition(";")[0]
        if type_ == "application/merge-patch+json":
            return self._store.merge(
                self._plural,
                self._namespace,
                self._name,
                self._read(),
                status=self._part == "status",
                strict=self._strict,
            )
        supported = "application/json-patch+json, application/merge-patch+json"
        if self._group in _CUSTOM or type_ != "application/strategic-merge-patch+json":
            raise Refusal(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: "
                f"{supported}",
            )
        raise Refusal(501, "NotImplemented", "the fake takes merge patches only")

    def _delete(self) -> None:
        options = self._read() if self._body else {}
        policy = options.get("propagationPolicy", "Background")
        self._store.delete(self._plural, self._namespace, self._name, policy)
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _matches(self, content: Manifest) -> bool:
        metadata = content["metadata"]
        labels = metadata.get("labels") or {}
        for clause in filter(None, self._query.get("labelSelector", "").split(",")):
            key, equals, value = clause.partition("=")
            if key not in labels or (equals and labels[key] != value):
                return False
        for clause in filter(None, self._query.get("fieldSelector", "").split(",")):
            key, _, value = clause.partition("=")
            if key != "metadata.name":
                raise Refusal(400, "BadRequest", f'field label not supported: "{key}"')
            if metadata["name"] != value:
                return False
        return True

    def _list(self) -> None:
        with self._store.locked():
            found = self._store.list(self._plural, self._namespace)
            version = str(self._store.version)
        items = [one for one in found if self._matches(one)]
        kind, api = f"{self._kind}List", self._api
        if "as=PartialObjectMetadataList" in self._handler.headers.get("Accept", ""):
            items = [{"metadata": one["metadata"]} for one in items]
            kind, api = "PartialObjectMetadataList", "meta.k8s.io/v1"
        self._handler.answer(
            200,
            {
                "kind": kind,
                "apiVersion": api,
                "metadata": {"resourceVersion": version},
                "items": items,
            },
        )

    def _watch(self) -> None:
        given = self._query.get("resourceVersion", "0")
        if not given.isdigit():
            raise Refusal(400, "BadRequest", f'invalid resource version "{given}"')
        self._handler.stream(self._changes(int(given)))

    def _changes(self, since: int) -> Iterator[bytes]:
        """Yield changes as lines; an empty part means that the connection is cut."""
        store, fake = self._store, self._fake
        end = time.monotonic() + float(self._query.get("timeoutSeconds", 1800))
        bookmarks = self._query.get("allowWatchBookmarks") in ("true", "1")
        cuts = fake._cuts
        next_bookmark = time.monotonic() + _BOOKMARK_EVERY_S
        while True:
            with store.changed:
                if since < store.forgotten:
                    gone = Refusal(
                        410, "Expired", f"too old resource version: {since} ({store.forgotten})"
                    )
                    yield _line("ERROR", gone.status)
                    return
                new = [one for one in store.history if one.version > since]
                if not new and fake._cuts == cuts:
                    store.changed.wait(min(0.1, max(0.0, end - time.monotonic())))
                    new = [one for one in store.history if one.version > since]
                version = store.version
            if fake._cuts != cuts:
                yield b""
                return
            for change in new:
                since = change.version
                if (change.plural, change.namespace) != (self._plural, self._namespace):
                    continue
                if self._matches(change.content):
                    yield _line(change.type, self._typed(change.content))
            if bookmarks and time.monotonic() > next_bookmark:
                next_bookmark = time.monotonic() + _BOOKMARK_EVERY_S
                mark = self._typed({"metadata": {"resourceVersion": str(max(since, version))}})
                yield _line("BOOKMARK", mark)
            if time.monotonic() >= end:
                return

    def _log(self) -> None:
        store, fake = self._store, self._fake
        pod = store.get("pods", self._namespace, self._name)
        container = self._query.get("container", "")
        if (self._name, container) not in fake.logs:
            raise Refusal(
                400,
                "BadRequest",
                f'container "{container}" in pod "{self._name}" is waiting to start: '
                "ContainerCreating",
            )
        self._handler.stream(self._log_lines(pod["metadata"]["uid"], container))

    def _log_lines(self, uid: str, container: str) -> Iterator[bytes]:
        store, fake = self._store, self._fake
        cuts, sent = fake._cuts, 0
        since = self._query.get("sinceTime", "")
        stamps = self._query.get("timestamps") == "true"
        while True:
            with store.changed:
                written = fake.logs[self._name, container]
                if sent == 0 and "tailLines" in self._query:
                    sent = max(0, len(written) - int(self._query["tailLines"]))
                new = written[sent:]
                pod = store.find("pods", self._namespace, self._name)
                over = pod is None or pod["metadata"]["uid"] != uid
                over = over or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
                if not new and not over and fake._cuts == cuts and "follow" in self._query:
                    store.changed.wait(0.1)
            if fake._cuts != cuts:
                yield b""
                return
            sent += len(new)
            for stamp, text in new:
                # Whole seconds, as the API reads it.
                if since and stamp[:19] < since[:19]:
                    continue
                yield (f"{stamp} {text}\n" if stamps else f"{text}\n").encode()
            if "follow" not in self._query or (over and not new):
                return


def _line(type_: str, content: Manifest) -> bytes:
    return json.dumps({"type": type_, "object": content}).encode() + b"\n"
