"""Why a study waits or has failed, in words, from what the cluster's objects say."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tuner.launch.kubernetes.labels import ROLE_LABEL
from tuner.launch.kubernetes.observed import ContainerStatus, SeenEvent, SeenPod, SeenRayCluster

_NO_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")
_BEGINNING = ("", "ContainerCreating", "PodInitializing")
# What operators say of each try anew, and the role of the pod that it is about. Once there is such
# a pod, it is over.
_TELLING = {
    "FailedToCreateHeadPod": "head",
    "FailedToCreateWorkerPod": "worker",
    "FailedCreate": "submitter",
    "FailedToCreateRayJobSubmitter": "submitter",
    "FailedToCreateRayCluster": "head",
    "InvalidRayJobSpec": "head",
    "InvalidRayJobMetadata": "head",
    "InvalidRayClusterSpec": "head",
    "InvalidRayClusterMetadata": "head",
    "ValidationFailed": "head",
}
_ABOUT_PODS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")


def reasons(
    clusters: Sequence[SeenRayCluster], pods: Sequence[SeenPod], events: Sequence[SeenEvent]
) -> tuple[str, ...]:
    """Return what holds a study up, each thing once, the gravest first."""
    said = [*_of_creation(clusters, pods, events), *_of_pods(pods, events)]
    return tuple(dict.fromkeys(said))


def in_words(message: str) -> str:
    """Return what the API says of a forbidden pod, without the pod's name; other words stay."""
    match = re.search(r'is forbidden: violates (PodSecurity "[^"]*"): (.*)', message, re.DOTALL)
    if match:
        return f"pod forbidden by {match[1]}: {match[2]}"
    match = re.search(
        r"is forbidden: exceeded quota: ([^,]+), requested: (.*), used: (.*), limited: (.*)",
        message,
        re.DOTALL,
    )
    if match:
        return (
            f"the quota {match[1]} of the namespace is used up: {match[2]} asked for, {match[3]} "
            f"used, {match[4]} allowed"
        )
    match = re.search(r"is forbidden: (.*)", message, re.DOTALL)
    return f"pod forbidden: {match[1]}" if match else message


def unschedulable(message: str) -> str:
    """Return what the scheduler says of the nodes, in words."""
    match = re.match(r"0/(\d+) nodes are available: (.*)", message, re.DOTALL)
    if match is None:
        return _claim(message)
    total = int(match[1])
    if total == 0:
        return "the cluster has no node"
    # What follows the last full stop is about pods that could be evicted.
    clauses = re.split(r"\. (?:preemption|no new claims)", match[2])[0].strip().rstrip(".")
    return "; ".join(_clause(one.strip(), total) for one in _split(clauses))


def _split(clauses: str) -> list[str]:
    """Return clauses; a comma within a taint's braces does not end one."""
    return re.split(r", (?=\d+ |pod |persistentvolumeclaim )", clauses)


def _clause(clause: str, total: int) -> str:
    match = re.match(r"(\d+) (.*)", clause, re.DOTALL)
    if match is None:
        return _claim(clause)
    count, rest = int(match[1]), match[2]
    of = "" if count == total else f" ({count} of {total} nodes)"
    some = f"{count} of {total} nodes"
    if lacking := re.fullmatch(r"Insufficient (\S+)", rest):
        return f"no node has {lacking[1]} free{of}" if not of else f"no {lacking[1]} free{of}"
    if "Too many pods" in rest:
        return f"no room for another pod{of}"
    if taint := re.search(r"untolerated taints?(?:\(s\))? ?\{?([^}]*)\}?", rest):
        name = taint[1].strip().rstrip(":").strip() or "of another use"
        return f"{some} have the taint {name}, which the pod does not tolerate"
    if "node affinity" in rest or "node selector" in rest:
        return f"{some} lack the labels of `node_selector`"
    return f"{some}: {rest}"


def _claim(message: str) -> str:
    if "unbound immediate PersistentVolumeClaims" in message:
        return "the claim of a disk is not bound to a volume"
    match = re.search(r'persistentvolumeclaim "([^"]+)" not found', message)
    return f"there is no claim {match[1]} for a disk" if match else message


def _of_creation(
    clusters: Sequence[SeenRayCluster], pods: Sequence[SeenPod], events: Sequence[SeenEvent]
) -> Iterator[str]:
    """Yield why pods or clusters could not even be made. A RayJob itself does not say."""
    for cluster in clusters:
        for condition in cluster.status.conditions:
            if condition.type == "RayClusterReplicaFailure" and condition.status == "True":
                yield in_words(condition.message or condition.reason)
    made = {role: pod.metadata.created for pod in _oldest_first(pods) if (role := role_of(pod))}
    latest: dict[str, SeenEvent] = {}
    for event in sorted(events, key=lambda one: one.when):
        if event.reason in _TELLING and event.type != "Normal":
            latest[event.reason] = event
    for reason, event in latest.items():
        since = made.get(_TELLING[reason])
        if since is None or since < event.when:
            yield in_words(event.message)


def _oldest_first(pods: Sequence[SeenPod]) -> list[SeenPod]:
    return sorted(pods, key=lambda one: one.metadata.created)


def _of_pods(pods: Sequence[SeenPod], events: Sequence[SeenEvent]) -> Iterator[str]:
    said = Counter(
        (role_of(pod), words)
        for pod in pods
        if pod.metadata.deletion_timestamp is None
        for words in _of_pod(pod, events)
    )
    for (role, words), count in said.items():
        whose = f"the {role}" if count == 1 else f"{count} {role}s"
        yield f"{whose}: {words}"


def role_of(pod: SeenPod) -> str:
    """Return what a pod of a study is for: head, worker or submitter."""
    return pod.metadata.labels.get(ROLE_LABEL, "pod")


def _of_pod(pod: SeenPod, events: Sequence[SeenEvent]) -> Iterator[str]:
    status = pod.status
    if status.phase == "Failed" and status.reason:
        yield f"{status.reason}: {status.message}" if status.message else status.reason
    for condition in status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield unschedulable(condition.message or condition.reason)
    begins = False
    for container in (*status.init_container_statuses, *status.container_statuses):
        yield from _of_container(container)
        waiting = container.state.waiting
        begins = begins or (waiting is not None and waiting.reason in _BEGINNING)
    if begins:
        about = [
            event
            for event in events
            if event.involved_object.uid == pod.metadata.uid and event.reason in _ABOUT_PODS
        ]
        if about:
            yield max(about, key=lambda one: one.when).message


def _of_container(container: ContainerStatus) -> Iterator[str]:
    waiting, ended = container.state.waiting, container.state.terminated
    if waiting is not None and waiting.reason not in _BEGINNING:
        more = f" ({waiting.message})" if waiting.message else ""
        if waiting.reason in _NO_IMAGE:
            yield f"the image {container.image} cannot be pulled{more}"
        elif waiting.reason == "CreateContainerConfigError":
            yield f"something that {container.name} needs is absent{more}"
        else:
            yield f"{container.name} does not start: {waiting.reason}{more}"
    if ended is not None and ended.reason == "OOMKilled":
        yield f"{container.name} was killed since it used more memory than it may"
    elif ended is not None and ended.exit_code != 0:
        yield f"{container.name} ended with exit code {ended.exit_code} ({ended.reason})"
