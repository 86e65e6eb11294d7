"""What KubeRay's operator would refuse is refused here, with the reason, before it is sent."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tuner.errors import ConfigError
from tuner.launch import RayJob, load_cluster, read_rayjob, render
from tuner.search import StudyConfig

Manifest = dict[str, Any]
Change = Callable[[Manifest], object]


@pytest.fixture(scope="module")
def good() -> Manifest:
    """The RayJob of a small study on GPU workers."""
    rendered = render(StudyConfig(task="country_capital"), load_cluster("gpu-cloud"))
    return rendered.rayjob.manifest()


@pytest.fixture
def manifest(good: Manifest) -> Manifest:
    return copy.deepcopy(good)


def _spec(manifest: Manifest) -> Manifest:
    return manifest["spec"]


def _cluster(manifest: Manifest) -> Manifest:
    return _spec(manifest)["rayClusterSpec"]


def _head(manifest: Manifest) -> Manifest:
    return _cluster(manifest)["headGroupSpec"]


def _workers(manifest: Manifest) -> Manifest:
    return _cluster(manifest)["workerGroupSpecs"][0]


def _pod(group: Manifest) -> Manifest:
    return group["template"]["spec"]


def _container(group: Manifest) -> Manifest:
    return _pod(group)["containers"][0]


def _submitter(manifest: Manifest) -> Manifest:
    return _spec(manifest)["submitterPodTemplate"]


def _set(part: Callable[[Manifest], Manifest], **values: Any) -> Change:
    return lambda manifest: part(manifest).update(values)


def _drop(part: Callable[[Manifest], Manifest], *keys: str) -> Change:
    return lambda manifest: [part(manifest).pop(key) for key in keys]


def _all(*changes: Change) -> Change:
    return lambda manifest: [change(manifest) for change in changes]


def _variable(part: Callable[[Manifest], Manifest], name: str, value: str) -> Change:
    return lambda manifest: _container(part(manifest))["env"].append({"name": name, "value": value})


def _by_rules(*rules: tuple[str, str, int]) -> Change:
    """Delete by rules instead of by a time to live."""
    listed = [
        {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": seconds}}
        for policy, status, seconds in rules
    ]
    return _all(
        _drop(_spec, "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        _set(_spec, deletionStrategy={"deletionRules": listed}),
    )


_on_shared_cluster = _all(
    _drop(_spec, "rayClusterSpec", "backoffLimit"),
    _set(_spec, clusterSelector={"ray.io/cluster": "shared"}),
)
_without_submitter = _drop(_spec, "submitterPodTemplate", "submitterConfig")

WRONG: dict[str, tuple[Change, str]] = {
    # What it is called.
    "a name too long for its pods": (
        lambda m: m["metadata"].update(name="a" * 48),
        "at most 47 characters",
    ),
    "a name that begins with a digit": (
        lambda m: m["metadata"].update(name="1st"),
        "beginning with a letter",
    ),
    "a name with capitals": (lambda m: m["metadata"].update(name="Study"), "DNS-1035"),
    "a namespace with a dot": (lambda m: m["metadata"].update(namespace="a.b"), "DNS-1123"),
    "a label with a space": (
        lambda m: m["metadata"].update(labels={"tuner/study": "a b"}),
        "letters, digits",
    ),
    "another version of the API": (lambda m: m.update(apiVersion="ray.io/v1alpha1"), "ray.io/v1"),
    # What it is made of.
    "a misspelt field": (_set(_spec, entrypont="x"), "Did you mean `entrypoint`?"),
    "a misspelt field deep inside": (
        lambda m: _container(_workers(m)).update(resorces={}),
        "Did you mean `resources`?",
    ),
    "a snake_case field": (_set(_spec, backoff_limit=1), "Did you mean `backoffLimit`?"),
    "a status": (lambda m: m.update(status={}), "the operator's to write"),
    "no entrypoint": (_drop(_spec, "entrypoint"), "must have an entrypoint"),
    "neither cluster nor selector": (_drop(_spec, "rayClusterSpec"), "either a rayClusterSpec or"),
    "both cluster and selector": (
        _set(_spec, clusterSelector={"ray.io/cluster": "shared"}),
        "and only one",
    ),
    # How it ends.
    "a time to live without shutdown": (
        _drop(_spec, "shutdownAfterJobFinishes"),
        "ttlSecondsAfterFinished must have shutdownAfterJobFinishes",
    ),
    "a negative time to live": (
        _set(_spec, ttlSecondsAfterFinished=-1),
        "greater than or equal to 0",
    ),
    "suspension without shutdown": (
        _all(
            _drop(_spec, "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
            _set(_spec, suspend=True),
        ),
        "suspend must have shutdownAfterJobFinishes",
    ),
    "a deadline of nothing": (_set(_spec, activeDeadlineSeconds=0), "must be above 0, but is 0"),
    "a negative start deadline": (
        _set(_spec, preRunningDeadlineSeconds=-5),
        "preRunningDeadlineSeconds must be above 0",
    ),
    "a negative backoff limit": (_set(_spec, backoffLimit=-1), "backoffLimit"),
    "a submitter's negative backoff limit": (
        _set(_spec, submitterConfig={"backoffLimit": -1}),
        "backoffLimit",
    ),
    "deletion rules beside shutdown": (
        _set(
            _spec,
            deletionStrategy={
                "deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}]
            },
        ),
        "must not both be set",
    ),
    "deletion of workers that scale": (
        _by_rules(("DeleteWorkers", "SUCCEEDED", 10)),
        "DeleteWorkers must not be used with enableInTreeAutoscaling",
    ),
    "a deletion rule that stands twice": (
        _by_rules(("DeleteSelf", "FAILED", 1), ("DeleteSelf", "FAILED", 2)),
        "one rule per job status",
    ),
    "a cluster that outlives its RayJob": (
        _by_rules(("DeleteCluster", "FAILED", 20), ("DeleteSelf", "FAILED", 10)),
        "workers must go first",
    ),
    "no deletion rule": (_by_rules(), "deletionRules"),
    "a deletion policy of old": (
        _all(
            _drop(_spec, "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
            _set(_spec, deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}}),
        ),
        "write `deletionRules`",
    ),
    # Somebody else's cluster.
    "retries on somebody else's cluster": (
        _all(_on_shared_cluster, _set(_spec, backoffLimit=1)),
        "must not have backoffLimit",
    ),
    "suspension of somebody else's cluster": (
        _all(_on_shared_cluster, _set(_spec, suspend=True)),
        "must not have suspend",
    ),
    "a sidecar in somebody else's cluster": (
        _all(_on_shared_cluster, _without_submitter, _set(_spec, submissionMode="SidecarMode")),
        "must not have submissionMode: SidecarMode",
    ),
    "a selector without a cluster": (
        _all(_on_shared_cluster, _set(_spec, clusterSelector={"team": "a"})),
        "must name the cluster",
    ),
    # How it is submitted.
    "a sidecar with a submitter's pod": (
        _all(_drop(_spec, "submitterConfig"), _set(_spec, submissionMode="SidecarMode")),
        "submitterPodTemplate must go with submissionMode K8sJobMode",
    ),
    "a sidecar with a submitter's settings": (
        _all(_drop(_spec, "submitterPodTemplate"), _set(_spec, submissionMode="SidecarMode")),
        "submitterConfig must go with submissionMode K8sJobMode",
    ),
    "retries of what a person submits": (
        _all(_without_submitter, _set(_spec, submissionMode="InteractiveMode")),
        "InteractiveMode must have no backoffLimit",
    ),
    "a submitter that Kubernetes would make": (
        _drop(_spec, "submitterPodTemplate"),
        "K8sJobMode must have a submitterPodTemplate",
    ),
    "a submitter that starts again for ever": (
        lambda m: _pod({"template": _submitter(m)}).update(restartPolicy="Always"),
        "Never or OnFailure",
    ),
    "a runtime environment that is not a mapping": (
        _set(_spec, runtimeEnvYAML="- a"),
        "must be a mapping",
    ),
    "a runtime environment that is not a YAML": (
        _set(_spec, runtimeEnvYAML="a: ["),
        "must be YAML",
    ),
    # The Ray cluster.
    "an open job server": (
        _set(_cluster, authOptions={"mode": "disabled"}),
        "authOptions.mode must be token",
    ),
    "no word about the job server": (_drop(_cluster, "authOptions"), "authOptions"),
    "tokens of Kubernetes": (
        _set(_cluster, authOptions={"mode": "token", "enableK8sTokenAuth": True}),
        "does not support it for RayJobs",
    ),
    "a Ray without tokens": (_set(_cluster, rayVersion="2.51.1"), "rayVersion 2.52 or later"),
    "a Ray without a version": (_set(_cluster, rayVersion="nightly"), "such as 2.60.0"),
    "a head that the autoscaler cannot replace": (
        lambda m: _pod(_head(m)).update(restartPolicy="Always"),
        "restartPolicy of the head must be Never",
    ),
    "workers that the autoscaler cannot replace": (
        lambda m: _pod(_workers(m)).update(restartPolicy="OnFailure"),
        "restartPolicy of the group gpu must be Never",
    ),
    "an autoscaler that is off": (
        _set(_cluster, enableInTreeAutoscaling=False),
        "must have enableInTreeAutoscaling: true",
    ),
    "workers that nobody starts": (
        _all(
            _drop(_cluster, "enableInTreeAutoscaling", "autoscalerOptions"),
            lambda m: _workers(m).pop("idleTimeoutSeconds"),
        ),
        "nothing would ever start any",
    ),
    "a group's timeout under the old autoscaler": (
        lambda m: _cluster(m)["autoscalerOptions"].update(version="v1"),
        "must have the autoscaler v2, but got the autoscaler v1",
    ),
    "a priority that Ray does not know": (
        _all(_set(_cluster, rayVersion="2.55.0"), _set(_workers, priority=1)),
        "rayVersion 2.56 or later",
    ),
    "the autoscaler chosen twice": (
        _variable(_head, "RAY_enable_autoscaler_v2", "1"),
        "write `autoscalerOptions: {version: v2}`",
    ),
    "an alpha network policy": (_set(_cluster, networkPolicy={}), "alpha in KubeRay 1.7"),
    "alpha encryption": (_set(_cluster, tlsOptions={}), "alpha in KubeRay 1.7"),
    "an alpha history server": (_set(_cluster, historyServerOptions={}), "alpha in KubeRay 1.7"),
    "Redis for the head": (
        _set(_cluster, gcsFaultToleranceOptions={}),
        "continued from its ledger",
    ),
    "Redis behind the operator's back": (
        _variable(_head, "RAY_REDIS_ADDRESS", "redis:6379"),
        "must not have the variable RAY_REDIS_ADDRESS",
    ),
    "Redis among the parameters": (
        lambda m: _head(m)["rayStartParams"].update({"redis-username": "me"}),
        "must not name Redis",
    ),
    "resources said twice": (
        _all(
            _set(_workers, resources={"cpu": "4"}),
            lambda m: _workers(m)["rayStartParams"].update({"num-cpus": "4"}),
        ),
        "must not both say what it has",
    ),
    "labels among the parameters": (
        lambda m: _workers(m)["rayStartParams"].update(labels="a=b"),
        "write them as the group's",
    ),
    "a parameter that is a number": (
        lambda m: _head(m)["rayStartParams"].update({"num-cpus": 0}),
        "write num-cpus: '0'",
    ),
    "more workers at first than at most": (
        _set(_workers, replicas=9),
        "minReplicas <= replicas <= maxReplicas",
    ),
    "two groups of one name": (
        lambda m: _cluster(m)["workerGroupSpecs"].append(_workers(m)),
        "a name of its own",
    ),
    "a head that would be killed": (
        lambda m: _container(_head(m)).update(
            resources={
                "requests": {"cpu": "1", "memory": "2Gi"},
                "limits": {"cpu": "1", "memory": "2Gi"},
            }
        ),
        "at least 4Gi",
    ),
    # Its pods.
    "a pod without containers": (
        lambda m: _pod(_workers(m)).update(containers=[]),
        "at least one container",
    ),
    "a container without a security context": (
        lambda m: _container(_workers(m)).pop("securityContext"),
        "ray-worker must have a securityContext",
    ),
    "an autoscaler without a security context": (
        lambda m: _cluster(m)["autoscalerOptions"].pop("securityContext"),
        "does not inherit the head's",
    ),
    "a submitter without a security context": (
        lambda m: _container({"template": _submitter(m)}).pop("securityContext"),
        "ray-job-submitter must have a securityContext",
    ),
    "a pod without a security context": (
        lambda m: _pod(_head(m)).pop("securityContext"),
        "a pod must have a securityContext",
    ),
    "a pod that runs as root": (
        lambda m: _pod(_head(m))["securityContext"].update(runAsUser=0),
        "a user other than root",
    ),
    "a pod without a filter of system calls": (
        lambda m: _pod(_head(m))["securityContext"].pop("seccompProfile"),
        "seccompProfile",
    ),
    "privileges that grow": (
        lambda m: _container(_head(m))["securityContext"].update(allowPrivilegeEscalation=True),
        "allowPrivilegeEscalation must be false",
    ),
    "capabilities that stay": (
        lambda m: _container(_head(m))["securityContext"].update(
            capabilities={"drop": ["NET_RAW"]}
        ),
        "must drop ALL",
    ),
    "a privileged container": (
        lambda m: _container(_head(m))["securityContext"].update(privileged=True),
        "`privileged` must not be set",
    ),
    "the node's network": (
        lambda m: _pod(_workers(m)).update(hostNetwork=True),
        "`hostNetwork` must not be set",
    ),
    "a folder of the node": (
        lambda m: _pod(_workers(m))["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "Use a persistentVolumeClaim",
    ),
    "a mount of nothing": (
        lambda m: _container(_head(m))["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
        "must be a volume of its pod",
    ),
    "a volume with two sources": (
        lambda m: _pod(_head(m))["volumes"][1].update(secret={"secretName": "x"}),
        "must have one source",
    ),
    "an image that moves": (
        lambda m: _container(_workers(m)).update(image="registry:5000/tuner:latest"),
        "an image must be pinned",
    ),
    "an image without a tag": (
        lambda m: _container(_workers(m)).update(image="registry:5000/tuner"),
        "an image must be pinned",
    ),
    "no request of memory": (
        lambda m: _container(_workers(m))["resources"]["requests"].pop("memory"),
        "requests must name memory",
    ),
    "no limit of memory": (
        lambda m: _container(_workers(m))["resources"]["limits"].pop("memory"),
        "limits must name memory",
    ),
    "a request above its limit": (
        lambda m: _container(_workers(m))["resources"]["limits"].update(memory="23Gi"),
        "24Gi is more than 23Gi",
    ),
    "half a GPU": (
        lambda m: [
            part.update({"nvidia.com/gpu": "0.5"})
            for part in _container(_workers(m))["resources"].values()
        ],
        "a whole number",
    ),
    "a quantity that Kubernetes does not know": (
        lambda m: _container(_workers(m))["resources"]["limits"].update(memory="24 GB"),
        "must be a quantity",
    ),
    "a toleration that matches nothing": (
        lambda m: _pod(_workers(m))["tolerations"].append(
            {"key": "spot", "operator": "Exists", "value": "true"}
        ),
        "must have no value",
    ),
    "a variable with two values": (
        lambda m: _container(_head(m))["env"].append(
            {"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
        ),
        "either `value` or `valueFrom`",
    ),
    "a variable that stands twice": (_variable(_head, "OMP_NUM_THREADS", "2"), "twice"),
}


def test_what_is_rendered_is_valid(good: Manifest) -> None:
    assert read_rayjob(good).manifest() == good


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_rayjob_is_refused_with_the_reason(mistake: str, manifest: Manifest) -> None:
    change, reason = WRONG[mistake]
    change(manifest)
    with pytest.raises(ConfigError) as refused:
        read_rayjob(manifest)
    assert reason in str(refused.value)
    assert "was not sent" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("URL", "postgresql://me:hush-hush@db/ledger"), ("DB_PASSWORD", "hush-hush")],
)
def test_a_secret_in_a_variable_is_refused_and_not_repeated(
    name: str, value: str, manifest: Manifest
) -> None:
    _variable(_head, name, value)(manifest)
    with pytest.raises(ConfigError) as refused:
        read_rayjob(manifest)
    assert f"{name} must not hold a secret" in str(refused.value)
    assert "hush" not in str(refused.value)


def test_every_broken_rule_of_different_parts_is_told_at_once(manifest: Manifest) -> None:
    manifest["metadata"]["name"] = "A"
    _spec(manifest)["backoffLimit"] = -1
    _container(_head(manifest))["image"] = "tuner"
    with pytest.raises(ConfigError) as refused:
        read_rayjob(manifest)
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    assert any("metadata.name" in line for line in lines)
    assert any("spec.backoffLimit" in line for line in lines)
    assert any("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0" in x for x in lines)


@pytest.mark.parametrize(
    "change",
    [
        _on_shared_cluster,
        _by_rules(("DeleteCluster", "FAILED", 600), ("DeleteSelf", "FAILED", 3600)),
        _all(_without_submitter, _set(_spec, submissionMode="SidecarMode")),
        _all(
            _without_submitter,
            _drop(_spec, "entrypoint", "backoffLimit"),
            _set(_spec, submissionMode="InteractiveMode"),
        ),
        _set(_spec, suspend=True),
        _set(_workers, priority=3),
    ],
)
def test_what_the_operator_takes_is_taken(change: Change, manifest: Manifest) -> None:
    change(manifest)
    found = read_rayjob(manifest)
    assert isinstance(found, RayJob)
    assert found.manifest() == manifest
