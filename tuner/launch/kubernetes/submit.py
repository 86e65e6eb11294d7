"""A rendered study is sent, once: sending it again changes nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuner.errors import ClusterError, ConfigError, TunerError
from tuner.files.yaml_file import parse_yaml
from tuner.launch.kubernetes.client import CONFIG_MAP, RAY_JOB, KubernetesApi, Manifest
from tuner.launch.kubernetes.labels import CONTENT_ANNOTATION, STUDY_LABEL
from tuner.launch.kubernetes.owned_objects import own

if TYPE_CHECKING:
    from tuner.launch.kubernetes.render import Rendered


async def submit(api: KubernetesApi, rendered: "Rendered") -> bool:
    """Send a study; return whether that was needed, or it was there already.

    The ConfigMap goes first, so that no pod waits for it, and is then made the RayJob's own, so
    that it goes with it. Where that is cut short, sending again completes it.

    Raises:
        ConfigError: another study of that name is there, or Kubernetes finds it not valid.
        ClusterError: Kubernetes cannot be reached, or refuses.
    """
    name = rendered.name
    there = await api.get(RAY_JOB, name)
    if there is not None:
        await _check_same(api, there, rendered)
        await own(api, there)
        return False
    files = rendered.config_map.manifest()
    made = await api.create(CONFIG_MAP, files)
    if made is None:
        await _renew(api, files)
    try:
        job = await api.create(RAY_JOB, rendered.rayjob.manifest())
    except TunerError:
        if made is not None:
            await api.delete(CONFIG_MAP, name)
        raise
    if job is None:
        # Another process has sent it since we looked.
        return await submit(api, rendered)
    await own(api, job)
    return True


async def _renew(api: KubernetesApi, files: Mapping[str, Any]) -> None:
    """Take over a ConfigMap that a cut-off launch has left."""
    name = files["metadata"]["name"]
    left = await api.get(CONFIG_MAP, name)
    if left is None:
        raise ClusterError(f"The ConfigMap {name} is being deleted. Launch again in a moment.")
    if STUDY_LABEL not in (left["metadata"].get("labels") or {}):
        raise ConfigError(
            f"The namespace {api.namespace} has a ConfigMap {name} that is not of tuner. Give the "
            "study another name."
        )
    absent: dict[str, None] = dict.fromkeys(set(left.get("data") or {}) - set(files["data"]))
    change = {
        "metadata": {"annotations": files["metadata"]["annotations"]},
        "data": {**files["data"], **absent},
    }
    await api.merge(CONFIG_MAP, name, change)


async def _check_same(api: KubernetesApi, there: Manifest, rendered: "Rendered") -> None:
    metadata, name = there["metadata"], rendered.name
    annotations = rendered.rayjob.metadata.annotations or {}
    content = (metadata.get("annotations") or {}).get(CONTENT_ANNOTATION)
    if content is None:
        raise ConfigError(
            f"The namespace {api.namespace} has a RayJob {name} that is not of tuner. Give the "
            "study another name."
        )
    if metadata.get("deletionTimestamp"):
        raise ClusterError(f"The study {name} is being deleted. Launch it again in a moment.")
    if content != annotations.get(CONTENT_ANNOTATION):
        differ = await _difference(api, rendered)
        raise ConfigError(
            f"A study {name} with other content is on the cluster already ({differ}). Give this "
            "one another name, go on with that one by `tuner resume`, or take that one away with "
            "`tuner stop --delete` and launch again: its trials stay in the ledger."
        )


async def _difference(api: KubernetesApi, rendered: "Rendered") -> str:
    """Return in which keys the study on the cluster differs from ours."""
    there = await api.get(CONFIG_MAP, rendered.name)
    ours = rendered.config_map.data
    theirs = (there or {}).get("data") or {}
    if theirs == ours:
        return "the study is the same, what the cluster gives it is not"
    keys = [
        key
        for file in sorted(set(ours) | set(theirs))
        for key in _changed_keys(file, theirs.get(file, ""), ours.get(file, ""))
    ]
    return f"they differ in {', '.join(keys)}"


def _changed_keys(file: str, first: str, second: str) -> list[str]:
    if first == second:
        return []
    try:
        contents = [parse_yaml(text) for text in (first, second)]
    except ConfigError:  # what lies on the cluster may be anybody's
        return [file]
    if not all(isinstance(one, dict) for one in contents):
        return [file]
    left, right = contents
    return sorted(key for key in set(left) | set(right) if left.get(key) != right.get(key))
