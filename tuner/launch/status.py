"""A study on a cluster, as a person wants to know it: how far it is, and what holds it up."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import final

from pydantic import BaseModel, ConfigDict

from tuner.launch.kubernetes.labels import QUEUE_LABEL, STUDY_ANNOTATION
from tuner.launch.kubernetes.observed import SeenEvent, SeenPod, SeenRayCluster, SeenRayJob
from tuner.launch.kubernetes.pending_reasons import in_words, reasons, role_of

_OPERATOR_WITHIN_S = 30


class LaunchState(StrEnum):
    """How far a launched study is."""

    SENT = "sent"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    STOPPING = "stopping"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    DELETED = "deleted"


_BY_DEPLOYMENT = {
    "": LaunchState.SENT,
    "Initializing": LaunchState.STARTING,
    "Waiting": LaunchState.STARTING,
    "Running": LaunchState.RUNNING,
    "Retrying": LaunchState.RETRYING,
    "Suspending": LaunchState.STOPPING,
    "Suspended": LaunchState.STOPPED,
    "Failed": LaunchState.FAILED,
    "ValidationFailed": LaunchState.REFUSED,
}
# KubeRay's own list of ends lacks ValidationFailed.
_ENDS = frozenset({LaunchState.COMPLETED, LaunchState.FAILED, LaunchState.REFUSED})
_WORDS = {
    LaunchState.SENT: "sent; KubeRay's operator has not taken it up yet",
    LaunchState.QUEUED: "waiting in the queue",
    LaunchState.STARTING: "the cluster starts",
    LaunchState.RUNNING: "the search runs",
    LaunchState.RETRYING: "an attempt was lost; a new cluster goes on from the ledger",
    LaunchState.STOPPING: "stopping",
    LaunchState.STOPPED: "stopped; its trials are in the ledger",
    LaunchState.COMPLETED: "completed",
    LaunchState.FAILED: "failed",
    LaunchState.REFUSED: "refused by KubeRay's operator",
    LaunchState.DELETED: "deleted; its trials are in the ledger",
}
_FAILURES = {
    "DeadlineExceeded": "it took longer than `deadline_s` of the cluster allows",
    "PreRunningDeadlineExceeded": "the cluster did not start within `start_deadline_s`",
    "AppFailed": "the search itself failed; see `tuner logs`",
    "SubmissionFailed": "the search could not be submitted to Ray; see `tuner logs`",
    "JobDeploymentStatusTransitionGracePeriodExceeded": (
        "the search has ended, but its submitter has not"
    ),
}


@final
class LaunchedPod(BaseModel):
    """A pod of a study."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: str
    phase: str


@final
class LaunchedStudy(BaseModel):
    """A study on a cluster at one moment; its place is a namespace, or a Ray cluster's address."""

    model_config = ConfigDict(frozen=True)

    name: str
    study: str
    place: str
    state: LaunchState
    words: str
    reasons: tuple[str, ...] = ()
    lost_attempts: int = 0
    attempt: int = 1
    attempts: int = 1
    started: datetime | None = None
    ended: datetime | None = None
    pods: tuple[LaunchedPod, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in _ENDS

    @property
    def rests(self) -> bool:
        """Whether it has ended or a person must act for it to go on."""
        return self.has_ended or self.state in (LaunchState.STOPPED, LaunchState.DELETED)

    @property
    def succeeded(self) -> bool:
        """Whether the search reached its end."""
        return self.state is LaunchState.COMPLETED

    def deleted(self) -> "LaunchedStudy":
        """Return the same study, gone from the cluster."""
        state = LaunchState.DELETED
        return self.model_copy(
            update={"state": state, "words": _WORDS[state], "reasons": (), "pods": ()}
        )


def describe(
    job: SeenRayJob,
    clusters: Sequence[SeenRayCluster],
    pods: Sequence[SeenPod],
    events: Sequence[SeenEvent],
    *,
    namespace: str,
    now: datetime,
) -> LaunchedStudy:
    """Return what the objects of a study say together."""
    state = _state(job)
    status = job.status
    words = _WORDS[state]
    ours = _about(job, clusters, pods, events)
    why = list(reasons(clusters, pods, ours))
    if state is LaunchState.FAILED:
        words += f": {_failure(job)}"
    elif state is LaunchState.REFUSED:
        words += f": {in_words(status.message or status.reason or 'no reason given')}"
    elif state is LaunchState.SENT:
        waited = (now - job.metadata.created).total_seconds()
        if waited > _OPERATOR_WITHIN_S and not why:
            why.append(
                f"nothing has happened for {waited:.0f} s: is KubeRay's operator running? "
                "`kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator`"
            )
    if job.metadata.deletion_timestamp is not None:
        words += "; it is being deleted"
    if state in (LaunchState.COMPLETED, LaunchState.STOPPED, LaunchState.STOPPING):
        why = []
    return LaunchedStudy(
        name=job.metadata.name,
        study=job.metadata.annotations.get(STUDY_ANNOTATION, job.metadata.name),
        place=namespace,
        state=state,
        words=words,
        reasons=tuple(why),
        lost_attempts=status.failed,
        attempt=min(status.failed, job.spec.backoff_limit) + 1,
        attempts=job.spec.backoff_limit + 1,
        started=status.start_time,
        ended=status.end_time,
        pods=tuple(
            LaunchedPod(name=pod.metadata.name, role=role_of(pod), phase=pod.status.phase)
            for pod in sorted(pods, key=lambda one: (role_of(one), one.metadata.name))
        ),
    )


def is_queued(job: SeenRayJob) -> bool:
    """Return whether Kueue decides when the study runs."""
    return QUEUE_LABEL in job.metadata.labels


def _state(job: SeenRayJob) -> LaunchState:
    status = job.status
    if status.job_deployment_status == "Complete":
        # A job that was stopped within Ray is Complete too, for KubeRay.
        stopped = status.job_status == "STOPPED"
        return LaunchState.FAILED if stopped else LaunchState.COMPLETED
    state = _BY_DEPLOYMENT.get(status.job_deployment_status, LaunchState.STARTING)
    if state in _ENDS:
        return state
    if job.spec.suspend and state in (LaunchState.SENT, LaunchState.STOPPED):
        return LaunchState.QUEUED if is_queued(job) else LaunchState.STOPPED
    if job.spec.suspend:
        return LaunchState.STOPPING
    # Resumed, and the operator has not seen it yet.
    return LaunchState.SENT if state is LaunchState.STOPPED else state


def _failure(job: SeenRayJob) -> str:
    status = job.status
    if status.job_status == "STOPPED":
        return "the search was stopped within Ray"
    known = _FAILURES.get(status.reason)
    said = in_words(status.message)
    return "; ".join(part for part in (known or status.reason, said) if part) or "no reason given"


def _about(
    job: SeenRayJob,
    clusters: Sequence[SeenRayCluster],
    pods: Sequence[SeenPod],
    events: Sequence[SeenEvent],
) -> list[SeenEvent]:
    """Return the events of a study's own objects, among all of the namespace."""
    uids = {one.metadata.uid for one in (job, *clusters, *pods)}
    # KubeRay names the Job that submits as the RayJob.
    return [
        event
        for event in events
        if event.involved_object.uid in uids
        or (event.involved_object.kind == "Job" and event.involved_object.name == job.metadata.name)
    ]
