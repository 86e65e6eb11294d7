"""All that belongs to a launched study, found by owners and labels, so that nothing is left."""

from collections.abc import Iterable

from tuner.errors import AccessDenied
from tuner.launch.kubernetes.client import (
    CONFIG_MAP,
    JOB,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    SECRET,
    SERVICE,
    KubernetesApi,
    Manifest,
)
from tuner.launch.kubernetes.labels import STUDY_LABEL
from tuner.launch.kubernetes.observed import Metadata

_KINDS = (RAY_JOB, RAY_CLUSTER, JOB, POD, SERVICE, CONFIG_MAP, SECRET)


async def belongings(
    api: KubernetesApi, name: str, known: Iterable[str] = ()
) -> dict[str, tuple[str, str]]:
    """Return kind and name of each object of a study by uid; `known` are uids found before.

    Kinds that we may not list are passed over.

    Raises:
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    by_uid: dict[str, tuple[str, Metadata]] = {}
    for kind in _KINDS:
        try:
            objects, _ = await api.list(kind, names_only=True)
        except AccessDenied:
            continue
        for one in objects:
            metadata = Metadata.model_validate(one["metadata"])
            by_uid[metadata.uid] = (kind.name, metadata)
    ours = {
        uid for uid, (_, metadata) in by_uid.items() if metadata.labels.get(STUDY_LABEL) == name
    }
    ours |= set(known)
    while True:
        more = {
            uid
            for uid, (_, metadata) in by_uid.items()
            if uid not in ours and any(owner.uid in ours for owner in metadata.owner_references)
        }
        if not more:
            break
        ours |= more
    return {uid: (by_uid[uid][0], by_uid[uid][1].name) for uid in ours if uid in by_uid}


async def own(api: KubernetesApi, job: Manifest) -> None:
    """Have the ConfigMap of a RayJob deleted with it.

    Raises:
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    metadata = job["metadata"]
    owner = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    change = {"metadata": {"ownerReferences": [owner]}}
    await api.merge(CONFIG_MAP, metadata["name"], change)
