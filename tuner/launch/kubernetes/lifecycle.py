"""A launched study is found, stopped, resumed, or taken away without a rest."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from tuner.errors import AccessDenied, ClusterError, ConfigError, unknown_name
from tuner.launch.kubernetes.client import (
    CONFIG_MAP,
    EVENT,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    Kind,
    KubernetesApi,
    Manifest,
)
from tuner.launch.kubernetes.labels import ORIGIN_LABEL, QUEUE_LABEL, STUDY_LABEL
from tuner.launch.kubernetes.observed import SeenEvent, SeenPod, SeenRayCluster, SeenRayJob
from tuner.launch.kubernetes.owned_objects import belongings, own
from tuner.launch.names import legal_name
from tuner.launch.status import LaunchedStudy, LaunchState, describe, is_queued

_LOOK_EVERY_S = 0.5
# Kueue's own object for each job that it queues.
_WORKLOADS = tuple(
    Kind("Workload", "workloads", "kueue.x-k8s.io", version) for version in ("v1beta2", "v1beta1")
)
_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


async def find(api: KubernetesApi, name: str) -> Manifest:
    """Return the RayJob of a study, by the study's name or its own.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    manifest = await api.get(RAY_JOB, legal_name(name))
    if manifest is not None and STUDY_LABEL in (manifest["metadata"].get("labels") or {}):
        return manifest
    known, _ = await api.list(RAY_JOB, STUDY_LABEL)
    names = [str(one["metadata"]["name"]) for one in known]
    raise unknown_name(f"study in the namespace {api.namespace}", name, names)


async def study_status(api: KubernetesApi, name: str) -> LaunchedStudy:
    """Return how far a study is.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    job = SeenRayJob.model_validate(await find(api, name))
    legal = job.metadata.name
    clusters, _ = await api.list(RAY_CLUSTER, f"{ORIGIN_LABEL}={legal}")
    pods, _ = await api.list(POD, f"{STUDY_LABEL}={legal}")
    try:
        events, _ = await api.list(EVENT)
    except AccessDenied:
        events = []
    return describe(
        job,
        [SeenRayCluster.model_validate(one) for one in clusters],
        [SeenPod.model_validate(one) for one in pods],
        [SeenEvent.model_validate(one) for one in events],
        namespace=api.namespace,
        now=datetime.now(UTC),
    )


async def list_studies(api: KubernetesApi) -> list[LaunchedStudy]:
    """Return all studies of the namespace, without what holds them up.

    Raises:
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    jobs, _ = await api.list(RAY_JOB, STUDY_LABEL)
    now = datetime.now(UTC)
    return [
        describe(SeenRayJob.model_validate(one), (), (), (), namespace=api.namespace, now=now)
        for one in jobs
    ]


async def stop(api: KubernetesApi, name: str, *, wait_s: float) -> LaunchedStudy:
    """Suspend a study and return it once its pods are gone, or after `wait_s`.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    study = await study_status(api, name)
    if study.has_ended:
        return study
    await _suspend(api, await find(api, name), suspended=True)

    async def rests() -> bool:
        nonlocal study
        study = await study_status(api, name)
        # A queued study that is put aside looks as one that waits for its turn.
        quiet = study.state in (LaunchState.STOPPED, LaunchState.QUEUED) and not study.pods
        return study.has_ended or quiet

    await _until(rests, wait_s)
    return study


async def delete(api: KubernetesApi, name: str, *, wait_s: float) -> None:
    """Take a study and all that belongs to it off the cluster; its trials stay in the ledger.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: something is left after `wait_s`, or Kubernetes cannot be reached or refuses.
    """
    legal = legal_name(name)
    ours = await belongings(api, legal)
    if not ours:
        await find(api, name)
    await _remove(api, legal, wait_s=wait_s)


async def resume(api: KubernetesApi, name: str, *, wait_s: float) -> bool:
    """Have a study go on from its ledger; return whether that was needed, or it runs already.

    One that has ended is made anew under its name, since KubeRay runs a RayJob only once.

    Raises:
        ConfigError: no such study is on the cluster.
        ClusterError: what was left of it does not go, or Kubernetes cannot be reached or refuses.
    """
    manifest = await find(api, name)
    job = SeenRayJob.model_validate(manifest)
    if job.metadata.deletion_timestamp is not None:
        raise ClusterError(f"The study {name} is being deleted. Launch it again in a moment.")
    study = await study_status(api, name)
    if study.has_ended:
        await _make_anew(api, manifest, wait_s=wait_s)
        return True
    if is_queued(job):
        return await _admit(api, job, active=True)
    if not job.spec.suspend:
        return False
    await _suspend(api, manifest, suspended=False)
    return True


async def _suspend(api: KubernetesApi, manifest: Manifest, *, suspended: bool) -> None:
    job = SeenRayJob.model_validate(manifest)
    if is_queued(job):
        # Kueue would at once undo what somebody else writes to `suspend`.
        await _admit(api, job, active=not suspended)
        return
    await api.merge(RAY_JOB, job.metadata.name, {"spec": {"suspend": suspended}})


async def _admit(api: KubernetesApi, job: SeenRayJob, *, active: bool) -> bool:
    """Let Kueue admit a study or not; return whether that changed anything."""
    for kind in _WORKLOADS:
        try:
            workloads, _ = await api.list(kind, f"{_JOB_UID_LABEL}={job.metadata.uid}")
        except ClusterError:
            continue
        changed = False
        for one in workloads:
            if (one.get("spec") or {}).get("active", True) is not active:
                await api.merge(kind, one["metadata"]["name"], {"spec": {"active": active}})
                changed = True
        if workloads:
            return changed
    queue = job.metadata.labels[QUEUE_LABEL]
    raise ClusterError(
        f"The study {job.metadata.name} is in the queue {queue} of Kueue, which has no Workload "
        "for it that you may change. Is Kueue installed? `tuner stop --delete` takes it away."
    )


async def _make_anew(api: KubernetesApi, manifest: Manifest, *, wait_s: float) -> None:
    name = manifest["metadata"]["name"]
    files = await api.get(CONFIG_MAP, name)
    if files is None:
        raise ConfigError(
            f"The study {name} has lost its ConfigMap. Take the rest away with `tuner stop "
            "--delete` and launch it again: its trials are in the ledger."
        )
    # Else it would go with the RayJob.
    await api.merge(CONFIG_MAP, name, {"metadata": {"ownerReferences": None}})
    await _remove(api, name, wait_s=wait_s, keep=files["metadata"]["uid"])
    made = await api.create(RAY_JOB, _again(manifest))
    if made is not None:
        await own(api, made)


def _again(manifest: Manifest) -> dict[str, Any]:
    """Return a RayJob as it was asked for, without what the API and the operator wrote to it."""
    metadata = manifest["metadata"]
    kept = ("name", "namespace", "labels", "annotations")
    queued = QUEUE_LABEL in (metadata.get("labels") or {})
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "metadata": {key: metadata[key] for key in kept if metadata.get(key)},
        "spec": {**manifest["spec"], "suspend": queued},
    }


async def _remove(api: KubernetesApi, name: str, *, wait_s: float, keep: str | None = None) -> None:
    """Delete a study's objects and wait until they are gone."""
    known: set[str] = set()
    left: dict[str, tuple[str, str]] = {}

    async def nothing_is_left() -> bool:
        nonlocal left
        left = await belongings(api, name, known)
        left.pop(keep or "", None)
        known.update(left)
        return not left

    await nothing_is_left()
    if ("RayJob", name) in left.values():
        await api.delete(RAY_JOB, name)
    if ("ConfigMap", name) in left.values():
        # One that no RayJob owns, left by a launch that was cut short, goes by itself.
        await api.delete(CONFIG_MAP, name)
    if await _until(nothing_is_left, wait_s):
        return
    rest = ", ".join(f"{kind} {one}" for kind, one in sorted(left.values()))
    job = await api.get(RAY_JOB, name)
    held = ", ".join((job or {}).get("metadata", {}).get("finalizers") or ())
    hint = f" The RayJob waits for {held}: is KubeRay's operator running?" if held else ""
    raise ClusterError(f"After {wait_s:g} s these are still there: {rest}.{hint}")


async def _until(holds: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await holds():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_LOOK_EVERY_S)
    return True
