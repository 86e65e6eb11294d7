"""What scheduler, node and admission say becomes words that say what to do something about."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuner.launch.kubernetes.observed import SeenEvent, SeenPod, SeenRayJob
from tuner.launch.kubernetes.pending_reasons import in_words, reasons, unschedulable
from tuner.launch.status import LaunchState, describe

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are "
            "available: 3 No preemption victims found for incoming pod.",
            "no node has nvidia.com/gpu free",
        ),
        (
            "0/5 nodes are available: 1 Insufficient cpu, 4 node(s) didn't match Pod's node "
            "affinity/selector. preemption: 0/5 nodes are available.",
            "no cpu free (1 of 5 nodes); 4 of 5 nodes lack the labels of `node_selector`",
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint {nvidia.com/gpu: present}. ",
            "2 of 2 nodes have the taint nvidia.com/gpu: present, which the pod does not tolerate",
        ),
        (
            "0/4 nodes are available: 4 Too many pods.",
            "no room for another pod",
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
            "the claim of a disk is not bound to a volume",
        ),
        (
            '0/1 nodes are available: persistentvolumeclaim "tuner-studies" not found.',
            "there is no claim tuner-studies for a disk",
        ),
        ("0/0 nodes are available: .", "the cluster has no node"),
        ("0/2 nodes are available: 2 node(s) were on fire.", "2 of 2 nodes: node(s) were on fire"),
        ("something else", "something else"),
    ],
)
def test_what_the_scheduler_says_in_words(message: str, words: str) -> None:
    assert unschedulable(message) == words


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            'Failed to create head Pod tuner/h, pods "h" is forbidden: violates PodSecurity '
            '"restricted:latest": runAsNonRoot != true',
            'pod forbidden by PodSecurity "restricted:latest": runAsNonRoot != true',
        ),
        (
            'pods "h" is forbidden: exceeded quota: gpu, requested: '
            "requests.nvidia.com/gpu=1,pods=1, used: requests.nvidia.com/gpu=8,pods=9, limited: "
            "requests.nvidia.com/gpu=8,pods=9",
            "the quota gpu of the namespace is used up: requests.nvidia.com/gpu=1,pods=1 asked "
            "for, requests.nvidia.com/gpu=8,pods=9 used, requests.nvidia.com/gpu=8,pods=9 allowed",
        ),
        (
            'pods "h" is forbidden: no PriorityClass with name high was found',
            "pod forbidden: no PriorityClass with name high was found",
        ),
        ("whatever", "whatever"),
    ],
)
def test_what_admission_says_in_words(message: str, words: str) -> None:
    assert in_words(message) == words


def _pod(role: str, status: dict[str, Any], *, created: datetime = NOW, uid: str = "p") -> SeenPod:
    metadata = {
        "name": uid,
        "uid": uid,
        "labels": {"tuner/role": role},
        "creationTimestamp": created.isoformat(),
    }
    return SeenPod.model_validate({"metadata": metadata, "status": status})


def _event(reason: str, message: str, when: datetime = NOW, **about: str) -> SeenEvent:
    return SeenEvent.model_validate(
        {
            "metadata": {"name": "e", "uid": "e"},
            "involvedObject": about,
            "type": "Warning",
            "reason": reason,
            "message": message,
            "firstTimestamp": None,
            "eventTime": when.isoformat(),
        }
    )


def _container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "ray-worker", "image": "i:1", "state": state}]}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            _container(terminated={"reason": "OOMKilled", "exitCode": 137}),
            "the worker: ray-worker was killed since it used more memory than it may",
        ),
        (
            _container(terminated={"reason": "Error", "exitCode": 3}),
            "the worker: ray-worker ended with exit code 3 (Error)",
        ),
        (
            _container(waiting={"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}),
            "the worker: ray-worker does not start: CrashLoopBackOff (back-off 5m0s)",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"},
            "the worker: Evicted: the node was low on memory",
        ),
    ],
)
def test_what_happened_to_a_pod_in_words(status: dict[str, Any], words: str) -> None:
    assert reasons((), [_pod("worker", status)], ()) == (words,)


def test_pods_that_wait_for_the_same_are_counted() -> None:
    waits = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]}
    pods = [_pod("worker", waits, uid=str(number)) for number in range(3)]
    assert reasons((), pods, ()) == ("3 workers: no room",)


def test_a_pod_that_begins_or_runs_or_goes_holds_nothing_up() -> None:
    pods = [
        _pod("head", _container(running={})),
        _pod("worker", _container(waiting={"reason": "ContainerCreating"})),
        _pod("submitter", _container(terminated={"reason": "Completed", "exitCode": 0})),
    ]
    assert reasons((), pods, ()) == ()


def test_an_event_is_over_once_there_is_such_a_pod() -> None:
    event = _event("FailedToCreateHeadPod", "no", NOW)
    assert reasons((), (), [event]) == ("no",)
    before = _pod("head", {}, created=NOW - timedelta(minutes=1))
    assert reasons((), [before], [event]) == ("no",)
    after = _pod("head", {}, created=NOW + timedelta(minutes=1))
    assert reasons((), [after], [event]) == ()


def _job(**status: Any) -> SeenRayJob:
    metadata = {"name": "a", "uid": "j", "creationTimestamp": "2026-11-21T11:00:00Z"}
    return SeenRayJob.model_validate(
        {"metadata": metadata, "spec": {"suspend": status.pop("suspend", False)}, "status": status}
    )


def _described(job: SeenRayJob, *events: SeenEvent) -> tuple[LaunchState, str, tuple[str, ...]]:
    study = describe(job, (), (), events, namespace="tuner", now=NOW)
    return study.state, study.words, study.reasons


@pytest.mark.parametrize(
    ("deployment", "job", "suspend", "state"),
    [
        ("", "", False, LaunchState.SENT),
        ("", "", True, LaunchState.STOPPED),
        ("Initializing", "", False, LaunchState.STARTING),
        ("Initializing", "", True, LaunchState.STOPPING),
        ("Running", "RUNNING", False, LaunchState.RUNNING),
        ("Running", "SUCCEEDED", False, LaunchState.RUNNING),
        ("Retrying", "FAILED", False, LaunchState.RETRYING),
        ("Suspending", "", True, LaunchState.STOPPING),
        ("Suspended", "", True, LaunchState.STOPPED),
        ("Suspended", "", False, LaunchState.SENT),
        ("Complete", "SUCCEEDED", False, LaunchState.COMPLETED),
        ("Complete", "STOPPED", False, LaunchState.FAILED),
        ("Failed", "FAILED", False, LaunchState.FAILED),
        ("ValidationFailed", "", False, LaunchState.REFUSED),
        ("SomethingNew", "", False, LaunchState.STARTING),
    ],
)
def test_every_state_of_kuberay_is_one_of_ours(
    deployment: str, job: str, suspend: bool, state: LaunchState
) -> None:
    status = {"jobDeploymentStatus": deployment, "jobStatus": job, "suspend": suspend}
    assert _described(_job(**status))[0] is state


def test_an_operator_that_does_nothing_is_suspected() -> None:
    _, _, why = _described(_job())
    assert len(why) == 1
    assert "is KubeRay's operator running?" in why[0]


def test_events_of_others_are_passed_over() -> None:
    ours = _event("FailedCreate", "ours", kind="Job", name="a")
    others = _event("FailedCreate", "others'", kind="Job", name="b")
    assert _described(_job(jobDeploymentStatus="Initializing"), ours, others)[2] == ("ours",)
