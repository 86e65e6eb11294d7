"""Objects with versions, owners and finalizers, as an API server and its garbage collector."""

import copy
import itertools
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Manifest = dict[str, Any]

# What a strict server knows, one level below each of these.
_KNOWN: dict[str, dict[str, set[str]]] = {
    "rayjobs": {
        "": {"apiVersion", "kind", "metadata", "spec", "status"},
        "spec": set(
            "entrypoint submissionMode jobId metadata runtimeEnvYAML entrypointNumCpus "
            "entrypointNumGpus entrypointResources suspend shutdownAfterJobFinishes "
            "ttlSecondsAfterFinished deletionStrategy activeDeadlineSeconds "
            "preRunningDeadlineSeconds backoffLimit managedBy submitterConfig "
            "submitterPodTemplate clusterSelector rayClusterSpec".split()
        ),
    },
    "configmaps": {"": {"apiVersion", "kind", "metadata", "data", "binaryData", "immutable"}},
}
_TYPES = {"suspend": bool, "shutdownAfterJobFinishes": bool, "backoffLimit": int}
_IMMUTABLE = ("managedBy",)
_STATUS_APART = ("rayjobs", "rayclusters", "jobs", "pods")
_FOREGROUND = "foregroundDeletion"


class Refusal(Exception):
    """An answer other than success, as Kubernetes words it."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": code,
        }


@dataclass(frozen=True)
class Change:
    """One line of the history that watches read."""

    version: int
    type: str
    plural: str
    namespace: str
    content: Manifest


class Store:
    """All objects of all namespaces."""

    def __init__(self, namespaces: tuple[str, ...]) -> None:
        self.namespaces = set(namespaces)
        self.changed = threading.Condition(threading.RLock())
        self.history: list[Change] = []
        self.forgotten = 0  # no watch may begin before this version
        self._objects: dict[tuple[str, str, str], Manifest] = {}
        self._versions = itertools.count(1)
        self.version = 0

    def get(self, plural: str, namespace: str, name: str) -> Manifest:
        with self.changed:
            try:
                return copy.deepcopy(self._objects[plural, namespace, name])
            except KeyError:
                raise Refusal(
                    404, "NotFound", f'{plural} "{name}" not found', name=name, kind=plural
                ) from None

    def find(self, plural: str, namespace: str, name: str) -> Manifest | None:
        try:
            return self.get(plural, namespace, name)
        except Refusal:
            return None

    def list(self, plural: str, namespace: str) -> list[Manifest]:
        with self.changed:
            return [
                copy.deepcopy(content)
                for (kind, place, _), content in sorted(self._objects.items())
                if (kind, place) == (plural, namespace)
            ]

    def create(self, plural: str, namespace: str, content: Manifest, strict: bool) -> Manifest:
        with self.changed:
            if namespace not in self.namespaces:
                raise Refusal(
                    404,
                    "NotFound",
                    f'namespaces "{namespace}" not found',
                    name=namespace,
                    kind="namespaces",
                )
            content = copy.deepcopy(content)
            metadata = content.setdefault("metadata", {})
            name = metadata.get("name", "")
            self._validate(plural, content, None, strict)
            if (plural, namespace, name) in self._objects:
                raise Refusal(409, "AlreadyExists", f'{plural} "{name}" already exists', name=name)
            metadata |= {
                "namespace": namespace,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": now(),
                "generation": 1,
            }
            if plural in ("rayjobs", "rayclusters"):
                content.pop("status", None)
            self._put("ADDED", plural, namespace, content)
            self._collect()
            return copy.deepcopy(content)

    def update(
        self,
        plural: str,
        namespace: str,
        name: str,
        content: Manifest,
        *,
        status: bool,
        strict: bool,
    ) -> Manifest:
        """Replace an object or its status; a version in it must be the current one."""
        with self.changed:
            old = self.get(plural, namespace, name)
            given = content.get("metadata", {}).get("resourceVersion")
            if given and given != old["metadata"]["resourceVersion"]:
                raise Refusal(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {plural} "{name}": the object has been '
                    "modified; please apply your changes to the latest version and try again",
                )
            new = copy.deepcopy(content)
            if status:
                new = {**old, "status": new.get("status", {})}
            elif plural in _STATUS_APART and "status" in old:
                new["status"] = old["status"]
            elif plural in _STATUS_APART:
                new.pop("status", None)
            self._validate(plural, new, old, strict)
            for key in ("uid", "creationTimestamp", "namespace", "name", "generation"):
                new["metadata"][key] = old["metadata"][key]
            if "deletionTimestamp" in old["metadata"]:
                new["metadata"]["deletionTimestamp"] = old["metadata"]["deletionTimestamp"]
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
            new["metadata"].pop("resourceVersion", None)
            before = {**old, "metadata": {**old["metadata"]}}
            before["metadata"].pop("resourceVersion", None)
            if new == before:
                return old  # nothing happened, so nobody is told
            self._put("MODIFIED", plural, namespace, new)
            self._collect()
            return copy.deepcopy(new)

    def merge(
        self,
        plural: str,
        namespace: str,
        name: str,
        change: Manifest,
        *,
        status: bool,
        strict: bool,
    ) -> Manifest:
        """Apply a merge patch (RFC 7386)."""
        with self.changed:
            merged = _merged(self.get(plural, namespace, name), change)
            if "resourceVersion" not in change.get("metadata", {}):
                merged["metadata"].pop("resourceVersion", None)
            return self.update(plural, namespace, name, merged, status=status, strict=strict)

    def delete(self, plural: str, namespace: str, name: str, policy: str = "Background") -> None:
        with self.changed:
            content = self.get(plural, namespace, name)
            metadata = content["metadata"]
            if policy == "Foreground" and _FOREGROUND not in metadata.get("finalizers", []):
                metadata["finalizers"] = [*metadata.get("finalizers", []), _FOREGROUND]
            metadata.setdefault("deletionTimestamp", now())
            self._put("MODIFIED", plural, namespace, content)
            self._collect()

    def forget(self) -> None:
        """Let every watch that begins at an older version be told that it has expired."""
        with self.changed:
            self.forgotten = self.version
            self.changed.notify_all()

    @contextmanager
    def locked(self) -> Iterator[None]:
        with self.changed:
            yield

    def _put(self, type_: str, plural: str, namespace: str, content: Manifest) -> None:
        self.version = next(self._versions)
        content["metadata"]["resourceVersion"] = str(self.version)
        key = (plural, namespace, content["metadata"]["name"])
        if type_ == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = copy.deepcopy(content)
        self.history.append(Change(self.version, type_, plural, namespace, copy.deepcopy(content)))
        self.changed.notify_all()

    def _collect(self) -> None:
        """Do what the garbage collector does, until nothing is left to do."""
        while self._collect_once():
            pass

    def _collect_once(self) -> bool:
        uids = {content["metadata"]["uid"]: content for content in self._objects.values()}
        for (plural, namespace, _), content in list(self._objects.items()):
            metadata = content["metadata"]
            owners = metadata.get("ownerReferences") or []
            going = "deletionTimestamp" in metadata
            foreground = [
                owner
                for owner in owners
                if owner["uid"] in uids
                and _FOREGROUND in uids[owner["uid"]]["metadata"].get("finalizers", [])
            ]
            orphaned = owners and not any(owner["uid"] in uids for owner in owners)
            if not going and (orphaned or foreground):
                self.delete(plural, namespace, metadata["name"], "Foreground")
                return True
            finalizers = metadata.get("finalizers") or []
            if going and _FOREGROUND in finalizers and not self._blocked(metadata["uid"]):
                content = copy.deepcopy(content)
                content["metadata"]["finalizers"].remove(_FOREGROUND)
                self._put("MODIFIED", plural, namespace, content)
                return True
            if going and not finalizers:
                self._put("DELETED", plural, namespace, copy.deepcopy(content))
                return True
        return False

    def _blocked(self, uid: str) -> bool:
        return any(
            owner["uid"] == uid and owner.get("blockOwnerDeletion")
            for content in self._objects.values()
            for owner in content["metadata"].get("ownerReferences") or []
        )

    def _validate(self, plural: str, content: Manifest, old: Manifest | None, strict: bool) -> None:
        name = content["metadata"].get("name", "")
        if len(name) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
            raise _invalid(plural, name, "metadata.name", f"Invalid value: {name!r}")
        for part, known in _KNOWN.get(plural, {}).items():
            values = content.get(part, {}) if part else content
            for field in sorted(set(values) - known):
                path = f"{part}.{field}" if part else field
                if strict:
                    raise Refusal(
                        400,
                        "BadRequest",
                        f"strict decoding error: unknown field {path!r}".replace("'", '"'),
                    )
                del values[field]
        spec = content.get("spec") or {}
        if plural != "rayjobs":
            return
        for field, type_ in _TYPES.items():
            if field in spec and type(spec[field]) is not type_:
                raise _invalid(
                    plural,
                    name,
                    f"spec.{field}",
                    f'Invalid value: "{type(spec[field]).__name__}": must be of type '
                    f"{type_.__name__}",
                )
        for field in _IMMUTABLE:
            was = ((old or {}).get("spec") or {}).get(field)
            if was is not None and spec.get(field) != was:
                raise _invalid(plural, name, f"spec.{field}", f"the {field} field is immutable")


def _invalid(plural: str, name: str, field: str, why: str) -> Refusal:
    kind = {"rayjobs": "RayJob.ray.io"}.get(plural, plural)
    return Refusal(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {field}: {why}',
        causes=[{"field": field, "message": why}],
    )


def _merged(old: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = _merged(new.get(key), value)
    return new


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
