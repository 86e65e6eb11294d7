"""A study and a cluster become a RayJob and the ConfigMap beside it: always the same ones."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, final

from pydantic import Field, ValidationError, model_validator

from tuner.errors import ConfigError
from tuner.files.paths import legal_part
from tuner.files.text_file import read_text
from tuner.files.yaml_file import dump_yaml
from tuner.launch.checks import (
    check_installed,
    check_leaves_place_open,
    check_space,
    check_travels_alone,
)
from tuner.launch.kubernetes.cluster import ClusterConfig, HeadPods, SecretValue, WorkerPods
from tuner.launch.kubernetes.labels import (
    CONTENT_ANNOTATION,
    QUEUE_LABEL,
    ROLE_LABEL,
    STUDY_ANNOTATION,
    STUDY_LABEL,
)
from tuner.launch.kubernetes.manifests import read_rayjob, refusal
from tuner.launch.kubernetes.objects import KubernetesObject, ObjectMeta, amount
from tuner.launch.kubernetes.rayjob import RayJob
from tuner.launch.names import legal_name
from tuner.search import StudyConfig

_STUDY_FOLDER = PurePosixPath("/etc/tuner/study")
_STUDY_FILE = "study.yaml"
_CACHE = "/cache"
_MOST_BYTES = 2**20
_SUBMIT_ATTEMPTS = 10

_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


@final
class ConfigMap(KubernetesObject):
    """Small files for pods."""

    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: ObjectMeta
    data: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_small(self) -> Self:
        size = sum(len(key) + len(text.encode()) for key, text in self.data.items())
        if size > _MOST_BYTES:
            raise ValueError(
                f"a ConfigMap must hold at most {_MOST_BYTES} bytes, but the study and its space "
                f"have {size}; put the space on a disk of the cluster"
            )
        return self


@final
@dataclass(frozen=True)
class Rendered:
    """What is sent for one study, in the order of sending."""

    config_map: ConfigMap
    rayjob: RayJob

    @property
    def name(self) -> str:
        """What both objects are called."""
        return self.rayjob.metadata.name

    def manifests(self) -> list[dict[str, Any]]:
        """Return both as plain values."""
        return [self.config_map.manifest(), self.rayjob.manifest()]


def render(study: StudyConfig, cluster: ClusterConfig) -> Rendered:
    """Return the objects that run a study on a cluster; equal arguments give equal objects.

    Raises:
        ConfigError: the study cannot run there, or its space does not fit its task.
        TaskError: its task is malformed.
    """
    files = _files(study, cluster)
    name = legal_name(study.name)
    spec = _spec(name, cluster)
    content = json.dumps([files, spec], sort_keys=True)
    metadata = {
        "name": name,
        "namespace": cluster.namespace,
        "labels": {STUDY_LABEL: name},
        "annotations": {
            STUDY_ANNOTATION: study.name,
            CONTENT_ANNOTATION: hashlib.sha256(content.encode()).hexdigest(),
        },
    }
    try:
        config_map = ConfigMap.model_validate(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}
        )
    except ValidationError as error:
        raise ConfigError(refusal("The ConfigMap", error)) from None
    return Rendered(config_map, read_rayjob(_rayjob(metadata, spec, cluster)))


def study_on(study: StudyConfig, cluster: ClusterConfig) -> StudyConfig:
    """Return the study as its driver reads it in the cluster.

    Raises:
        ConfigError: it names something that only this machine has, or that the cluster lacks.
    """
    check_leaves_place_open(study, "the ledger's address comes from the cluster's Secret")
    for key in ("task", "model", "general"):
        _check_visible(key, study, cluster)
    gpus = _gpus_of_a_trial(study, cluster)
    places = sum(_places(group, gpus) for group in cluster.workers)
    if places == 0:
        raise ConfigError(
            f"gpus_per_worker: a trial must fit into a worker, but takes {gpus:g} GPUs and one "
            f"cpu, and the workers have {_describe(cluster)}."
        )
    if study.workers != "auto" and study.workers > places:
        raise ConfigError(
            f"workers: the cluster must have room for all trials at a time, but {study.workers} "
            f"are asked for and {places} fit at most ({_describe(cluster)}). Raise `most`, or ask "
            "for fewer."
        )
    return study.model_copy(
        update={
            "address": "auto",
            "workers": study.workers_within(places),
            "gpus_per_worker": gpus,
        }
    )


def _files(study: StudyConfig, cluster: ClusterConfig) -> dict[str, str]:
    """Return the study, and its space where that is a file of this machine."""
    there = study_on(study, cluster)
    files: dict[str, str] = {}
    space = Path(study.space)
    if space.is_absolute():
        if not any(disk.holds(study.space) for disk in cluster.disks):
            check_travels_alone(space)
            check_space(study)
            check_installed(study, study.space)
            # A file of a ConfigMap may be called by few letters only.
            name = f"{legal_part(space.stem)}.yaml"
            files[name] = read_text(space)
            there = there.model_copy(update={"space": str(_STUDY_FOLDER / name)})
    else:
        check_space(study)
        check_installed(study, study.space)
    content = there.model_dump(mode="json", exclude_none=True)
    files[_STUDY_FILE] = dump_yaml(content)
    return files


def _check_visible(key: str, study: StudyConfig, cluster: ClusterConfig) -> None:
    value: str | None = getattr(study, key)
    if value is None or not os.path.isabs(value):
        return
    if not any(disk.holds(value) for disk in cluster.disks):
        known = ", ".join(disk.path for disk in cluster.disks) or "none"
        raise ConfigError(
            f"{key}: {study.spelled(key)} must be a name, or lie on a disk of the cluster "
            f"({known}): the cluster does not see the files of this machine. Copy it to a disk, "
            "name the disk in the cluster's `disks`, and give its path there."
        )


def _gpus_of_a_trial(study: StudyConfig, cluster: ClusterConfig) -> float:
    have = any(group.gpus for group in cluster.workers)
    if study.device.startswith("cuda") and not have:
        raise ConfigError(
            f"device: {study.device} must have workers with GPUs, but they have "
            f"{_describe(cluster)}."
        )
    if study.device == "cpu":
        return 0.0
    if study.gpus_per_worker is not None:
        return study.gpus_per_worker
    return 1.0 if have else 0.0


def _places(group: WorkerPods, gpus: float) -> int:
    """Return how many trials a group runs at a time, at most."""
    by_cpu = int(amount(group.cpu))
    return group.most * (min(by_cpu, int(group.gpus / gpus)) if gpus else by_cpu)


def _describe(cluster: ClusterConfig) -> str:
    return "; ".join(
        f"{group.name}: {group.most} × {group.cpu} cpu, {group.gpus} GPUs"
        for group in cluster.workers
    )


def _spec(name: str, cluster: ClusterConfig) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "submissionMode": "K8sJobMode",
        "entrypoint": f"tuner search {_STUDY_FOLDER / _STUDY_FILE}",
        "jobId": name,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": cluster.keep_cluster_s,
        "preRunningDeadlineSeconds": cluster.start_deadline_s,
        "activeDeadlineSeconds": cluster.deadline_s,
        # Each attempt begins with an empty cluster; its driver goes on from the ledger.
        "backoffLimit": cluster.backoff_limit,
        "suspend": cluster.queue is not None,
        "submitterConfig": {"backoffLimit": _SUBMIT_ATTEMPTS},
        "submitterPodTemplate": _submitter(name, cluster),
        "rayClusterSpec": {
            "rayVersion": cluster.ray_version,
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "securityContext": _CONTAINER_SECURITY,
                "resources": _resources("500m", "1Gi"),
            },
            "headGroupSpec": _head(name, cluster),
            "workerGroupSpecs": [_workers(name, group, cluster) for group in cluster.workers],
        },
    }
    if spec["activeDeadlineSeconds"] is None:
        del spec["activeDeadlineSeconds"]
    if cluster.queue is None:
        del spec["suspend"]
    return spec


def _rayjob(
    metadata: Mapping[str, Any], spec: Mapping[str, Any], cluster: ClusterConfig
) -> dict[str, Any]:
    if cluster.queue is None:
        return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}
    queued = {
        **metadata,
        "labels": {**metadata["labels"], QUEUE_LABEL: cluster.queue},
        # Kueue admits a job whose workers come and go only where it may slice its workload.
        "annotations": {**metadata["annotations"], "kueue.x-k8s.io/elastic-job": "true"},
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": queued, "spec": spec}


def _head(name: str, cluster: ClusterConfig) -> dict[str, Any]:
    mlflow, ledger = cluster.mlflow, cluster.ledger
    env = [
        *_common_variables(cluster),
        {"name": "MLFLOW_TRACKING_URI", "value": mlflow.uri},
        _from_secret("TUNER_STORAGE", ledger),
    ]
    if mlflow.username is not None and mlflow.password is not None:
        env.append(_from_secret("MLFLOW_TRACKING_USERNAME", mlflow.username))
        env.append(_from_secret("MLFLOW_TRACKING_PASSWORD", mlflow.password))
    template = _pod(name, "head", cluster.head, cluster)
    # A tidy cluster autoscaler would take the driver away to save a node.
    template["metadata"]["annotations"] = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"
    }
    template["spec"]["serviceAccountName"] = cluster.service_account
    template["spec"]["containers"] = [
        {
            "name": "ray-head",
            "image": cluster.image,
            "env": env,
            "resources": _resources(cluster.head.cpu, cluster.head.memory),
            "securityContext": _CONTAINER_SECURITY,
            "volumeMounts": [
                {"name": "study", "mountPath": str(_STUDY_FOLDER), "readOnly": True},
                *_mounts(cluster),
            ],
        }
    ]
    template["spec"]["volumes"] = [
        {"name": "study", "configMap": {"name": name}},
        *_volumes(cluster),
    ]
    # The head offers no processor, so that no trial takes memory from the driver.
    return {"rayStartParams": {"num-cpus": "0"}, "template": template}


def _workers(name: str, group: WorkerPods, cluster: ClusterConfig) -> dict[str, Any]:
    template = _pod(name, "worker", group, cluster)
    # Workers ask nothing of Kubernetes, so they hold no token for it.
    template["spec"]["automountServiceAccountToken"] = False
    resources = _resources(group.cpu, group.memory)
    if group.gpus:
        for part in resources.values():
            part[group.gpu_resource] = str(group.gpus)
    template["spec"]["containers"] = [
        {
            "name": "ray-worker",
            "image": (cluster.gpu_image or cluster.image) if group.gpus else cluster.image,
            "env": _common_variables(cluster),
            "resources": resources,
            "securityContext": _CONTAINER_SECURITY,
            "volumeMounts": _mounts(cluster),
        }
    ]
    template["spec"]["volumes"] = list(_volumes(cluster))
    return {
        "groupName": group.name,
        "replicas": group.least,
        "minReplicas": group.least,
        "maxReplicas": group.most,
        "idleTimeoutSeconds": group.idle_timeout_s,
        "rayStartParams": {},
        "template": template,
    }


def _submitter(name: str, cluster: ClusterConfig) -> dict[str, Any]:
    template = _pod(name, "submitter", HeadPods(), cluster)
    template["spec"]["automountServiceAccountToken"] = False
    template["spec"]["nodeSelector"] = dict(cluster.head.node_selector)
    template["spec"]["tolerations"] = [one.manifest() for one in cluster.head.tolerations]
    template["spec"]["containers"] = [
        {
            "name": "ray-job-submitter",
            "image": cluster.image,
            "resources": _resources("500m", "1Gi"),
            "securityContext": _CONTAINER_SECURITY,
        }
    ]
    return _without_empty(template)


def _pod(
    name: str, role: str, pods: HeadPods | WorkerPods, cluster: ClusterConfig
) -> dict[str, Any]:
    """Return the part of a pod's template that all pods of a study share."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [one.manifest() for one in pods.tolerations],
    }
    if pods.priority_class is not None:
        spec["priorityClassName"] = pods.priority_class
    if cluster.pull_secret is not None:
        spec["imagePullSecrets"] = [{"name": cluster.pull_secret}]
    template = {"metadata": {"labels": {STUDY_LABEL: name, ROLE_LABEL: role}}, "spec": spec}
    return _without_empty(template)


def _without_empty(template: dict[str, Any]) -> dict[str, Any]:
    spec = {key: value for key, value in template["spec"].items() if value not in ({}, [])}
    return {**template, "spec": spec}


def _common_variables(cluster: ClusterConfig) -> list[dict[str, Any]]:
    ours = {
        "TUNER_STUDIES": cluster.studies.path,
        "TUNER_CACHE": _CACHE,
        "HF_HOME": f"{_CACHE}/huggingface",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return [{"name": key, "value": text} for key, text in {**ours, **cluster.environment}.items()]


def _from_secret(variable: str, value: SecretValue) -> dict[str, Any]:
    reference = {"name": value.secret, "key": value.key}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _resources(cpu: str, memory: str) -> dict[str, dict[str, str]]:
    """Return requests and limits that are the same, so that a full node evicts others first."""
    return {part: {"cpu": cpu, "memory": memory} for part in ("requests", "limits")}


def _volumes(cluster: ClusterConfig) -> Iterator[dict[str, Any]]:
    yield {"name": "cache", "emptyDir": {}}
    for disk in (cluster.studies, *cluster.disks):
        claim: dict[str, Any] = {"claimName": disk.claim}
        if disk.read_only:
            claim["readOnly"] = True
        yield {"name": disk.name, "persistentVolumeClaim": claim}


def _mounts(cluster: ClusterConfig) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "cache", "mountPath": _CACHE}]
    for disk in (cluster.studies, *cluster.disks):
        mount: dict[str, Any] = {"name": disk.name, "mountPath": disk.path}
        if disk.read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    return mounts
