"""A KubeRay, a scheduler and a node that play one named scenario for each RayJob.

What an operator always does (finalizer, suspension, clean-up) is done whatever the scenario.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from tests.support.fake_kubernetes.server import FakeKubernetes
from tests.support.fake_kubernetes.store import Manifest, Refusal, now

FINALIZER = "ray.io/rayjob-finalizer"
_ENDS = ("Complete", "Failed", "ValidationFailed")
_TICK_S = 0.01

Script = Iterator[None]


class Play:
    """One RayJob's scenario as it is played; each method is one thing that happens."""

    def __init__(self, fake: FakeKubernetes, job: Manifest, released: threading.Event) -> None:
        self.fake = fake
        self.store = fake.store
        self.name = job["metadata"]["name"]
        self.namespace = job["metadata"]["namespace"]
        self.uid = job["metadata"]["uid"]
        self._released = released
        self._attempts = itertools.count()
        self.cluster = ""

    @property
    def job(self) -> Manifest:
        return self.store.get("rayjobs", self.namespace, self.name)

    def status(self, deployment: str, job: str | None = None, **more: Any) -> None:
        """Write the RayJob's status."""
        change = {"jobDeploymentStatus": deployment, **more}
        if job is not None:
            change["jobStatus"] = job
        with contextlib.suppress(Refusal):
            self.store.merge(
                "rayjobs", self.namespace, self.name, {"status": change}, status=True, strict=False
            )

    def initialise(self) -> None:
        """Make a RayCluster, as for every attempt."""
        self.cluster = f"{self.name}-{'abcdefgh'[next(self._attempts)] * 5}"
        self.status(
            "Initializing",
            "",
            rayClusterName=self.cluster,
            startTime=now(),
            reason=None,
            message=None,
        )
        self._make("rayclusters", self.cluster, {"ray.io/originated-from-crd": "RayJob"})
        self._make("secrets", f"{self.cluster}-auth", {}, owner="rayclusters")
        self._make("services", f"{self.cluster}-head-svc", {}, owner="rayclusters")

    def pod(self, role: str, status: Manifest, suffix: str = "") -> str:
        """Make a pod, or tell another state of it; return its name."""
        name = f"{self.name}-submit-{self.cluster[-5:]}" if role == "submitter" else ""
        name = (name or f"{self.cluster}-{role}") + suffix
        if self.store.find("pods", self.namespace, name) is None:
            labels = {"tuner/study": self.name, "tuner/role": role}
            owner = "jobs" if role == "submitter" else "rayclusters"
            self._make("pods", name, labels, owner=owner, origin=False)
        self.store.merge(
            "pods", self.namespace, name, {"status": status}, status=True, strict=False
        )
        return name

    def head_runs(self) -> None:
        self.pod("head", running("ray-head"))
        self.fake.write_log(f"{self.cluster}-head", "ray-head", "Ray runtime started.")

    def submit(self, *lines: str) -> None:
        """Let the submitter's pod run and repeat what the driver says."""
        if self.store.find("jobs", self.namespace, self.name) is None:
            self._make("jobs", self.name, {})
        name = self.pod("submitter", running("ray-job-submitter"))
        self.fake.write_log(name, "ray-job-submitter", *lines)

    def runs(self) -> None:
        self.status("Running", "RUNNING")

    def succeeds(self) -> None:
        """End well; Ray says so before KubeRay does."""
        self.pod("submitter", ended(0, "ray-job-submitter"))
        self.status("Running", "SUCCEEDED")
        self.status("Complete", "SUCCEEDED", endTime=now(), succeeded=1)

    def fails(self, reason: str, message: str, job: str = "FAILED") -> None:
        self.status("Failed", job, reason=reason, message=message, endTime=now(), failed=1)

    def event(self, kind: str, name: str, reason: str, message: str) -> None:
        """Tell of something that happened to an object."""
        plural = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "Pod": "pods", "Job": "jobs"}
        about = self.store.find(plural[kind], self.namespace, name)
        event = f"{name}.{len(self.store.history):x}"
        content = {
            "metadata": {"name": event},
            "involvedObject": {
                "kind": kind,
                "name": name,
                "uid": about["metadata"]["uid"] if about else "",
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "eventTime": None,
        }
        self.store.create("events", self.namespace, content, False)

    def clear(self) -> None:
        """Take the cluster and the submitter away."""
        for plural, name in (("jobs", self.name), ("rayclusters", self.cluster)):
            with contextlib.suppress(Refusal):
                self.store.delete(plural, self.namespace, name)

    def wait(self) -> Script:
        """Play on only when the test says so."""
        while not self._released.is_set():
            yield
        self._released.clear()

    def _make(
        self,
        plural: str,
        name: str,
        labels: Manifest,
        *,
        owner: str = "rayjobs",
        origin: bool = True,
    ) -> None:
        if self.store.find(plural, self.namespace, name) is not None:
            return
        by = self.cluster if owner == "rayclusters" else self.name
        metadata = self.store.get(owner, self.namespace, by)["metadata"]
        ours = {"ray.io/originated-from-cr-name": self.name} if origin else {}
        content = {
            "metadata": {
                "name": name,
                "labels": {**ours, **labels},
                "ownerReferences": [
                    {
                        "apiVersion": "ray.io/v1",
                        "kind": owner,
                        "name": by,
                        "uid": metadata["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
        }
        if plural in ("rayclusters", "jobs"):
            content["spec"] = {}
        self.store.create(plural, self.namespace, content, False)


def running(container: str) -> Manifest:
    """Status of a pod whose container runs."""
    return {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [
            {"name": container, "image": "tuner:0.1.0", "state": {"running": {"startedAt": now()}}}
        ],
    }


def ended(code: int, container: str, reason: str = "Completed") -> Manifest:
    """Status of a pod whose container has ended."""
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "containerStatuses": [
            {
                "name": container,
                "image": "tuner:0.1.0",
                "state": {"terminated": {"exitCode": code, "reason": reason}},
            }
        ],
    }


def unschedulable(message: str) -> Manifest:
    """Status of a pod for which there is no node."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"phase": "Pending", "conditions": [{**condition, "message": message}]}


def waiting(container: str, reason: str, message: str) -> Manifest:
    """Status of a pod whose container does not start."""
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [
            {
                "name": container,
                "image": "tuner:0.1.0",
                "state": {"waiting": {"reason": reason, "message": message}},
            }
        ],
    }


def _start(play: Play, *lines: str) -> Script:
    play.initialise()
    yield
    play.head_runs()
    yield
    play.submit(*(lines or ("Searching · 0/2 trials done",)))
    play.runs()
    yield


def _completion(play: Play) -> Script:
    yield from _start(play)
    play.submit("Searching · 2/2 trials done", "Finished")
    yield
    play.succeeds()


def _running(play: Play) -> Script:
    yield from _start(play)
    yield from play.wait()
    play.submit("Finished")
    play.succeeds()


NO_GPU = (
    "0/5 nodes are available: 2 node(s) had untolerated taint {dedicated: web}, 3 Insufficient "
    "nvidia.com/gpu. preemption: 0/5 nodes are available: 5 Preemption is not helpful for "
    "scheduling."
)
PODSECURITY = (
    'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container '
    '"autoscaler" must set securityContext.allowPrivilegeEscalation=false)'
)


def _no_gpu(play: Play) -> Script:
    yield from _start(play)
    for suffix in ("-1", "-2"):
        play.pod("worker", unschedulable(NO_GPU), suffix)
    yield from play.wait()
    for suffix in ("-1", "-2"):
        play.pod("worker", running("ray-worker"), suffix)
    play.succeeds()


def _forbidden_head(play: Play) -> Script:
    play.initialise()
    message = f'pods "{play.cluster}-head" is forbidden: {PODSECURITY}'
    play.event(
        "RayCluster",
        play.cluster,
        "FailedToCreateHeadPod",
        f"Failed to create head Pod {play.namespace}/{play.cluster}-head, {message}",
    )
    yield from play.wait()


def _forbidden_submitter(play: Play) -> Script:
    play.initialise()
    play.head_runs()
    play._make("jobs", play.name, {})
    play.event("Job", play.name, "FailedCreate", f'Error creating: pods "s" is forbidden: {QUOTA}')
    yield from play.wait()


QUOTA = "exceeded quota: compute, requested: cpu=4, used: cpu=14, limited: cpu=16"


def _quota(play: Play) -> Script:
    play.initialise()
    play.store.merge(
        "rayclusters",
        play.namespace,
        play.cluster,
        {
            "status": {
                "conditions": [
                    {
                        "type": "RayClusterReplicaFailure",
                        "status": "True",
                        "reason": "FailedCreateHeadPod",
                        "message": f'pods "h" is forbidden: {QUOTA}',
                    }
                ]
            }
        },
        status=True,
        strict=False,
    )
    yield from play.wait()


def _no_image(play: Play) -> Script:
    play.initialise()
    play.pod("head", waiting("ray-head", "ImagePullBackOff", 'Back-off pulling "tuner:0.1.0"'))
    yield from play.wait()


def _no_secret(play: Play) -> Script:
    play.initialise()
    play.pod(
        "head",
        waiting("ray-head", "CreateContainerConfigError", 'secret "tuner-ledger" not found'),
    )
    yield from play.wait()


def _no_disk(play: Play) -> Script:
    play.initialise()
    head = play.pod("head", waiting("ray-head", "ContainerCreating", ""))
    play.event("Pod", head, "FailedMount", "MountVolume.SetUp failed for volume studies")
    yield from play.wait()


def _silent(play: Play) -> Script:
    play.initialise()
    yield from play.wait()


def _never_taken_up(play: Play) -> Script:
    yield from play.wait()


def _refused(play: Play) -> Script:
    play.status(
        "ValidationFailed",
        "",
        reason="ValidationFailed",
        message="The RayJob spec is invalid: backoffLimit must be a positive integer",
    )
    yield


def _late(play: Play) -> Script:
    play.initialise()
    play.pod("head", unschedulable("0/1 nodes are available: 1 Insufficient cpu."))
    yield
    yield
    play.fails("PreRunningDeadlineExceeded", "The RayJob was not running after 1800 s", "")


def _retry(play: Play) -> Script:
    yield from _start(play, "Searching · 1/2 trials done")
    yield from play.wait()
    play.status("Retrying", "", failed=1, reason="AppFailed", message="head pod lost")
    play.clear()
    yield
    yield
    yield from _start(play, "Continuing from the ledger", "Finished")
    play.succeeds()


def _failure(play: Play) -> Script:
    yield from _start(play, "Error: the general text is absent")
    play.pod("submitter", ended(1, "ray-job-submitter", "Error"))
    yield
    play.fails("AppFailed", "Job entrypoint command failed with exit code 2")


def _stopped_in_ray(play: Play) -> Script:
    yield from _start(play)
    play.pod("submitter", ended(0, "ray-job-submitter"))
    play.status("Complete", "STOPPED", endTime=now())
    yield


SCENARIOS: dict[str, Callable[[Play], Script]] = {
    "completion": _completion,
    "running": _running,
    "no gpu": _no_gpu,
    "forbidden head": _forbidden_head,
    "forbidden submitter": _forbidden_submitter,
    "quota": _quota,
    "no image": _no_image,
    "no secret": _no_secret,
    "no disk": _no_disk,
    "silent": _silent,
    "never taken up": _never_taken_up,
    "refused": _refused,
    "late": _late,
    "retry": _retry,
    "failure": _failure,
    "stopped in Ray": _stopped_in_ray,
}


class ScriptedKubeRay:
    """Plays a scenario for every RayJob. Use it as a context manager."""

    def __init__(self, fake: FakeKubernetes, scenario: str = "completion") -> None:
        self.scenario = scenario
        self._fake = fake
        self._released = threading.Event()
        self._over = threading.Event()
        self._plays: dict[str, tuple[Play, Script]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def release(self) -> None:
        """Let a scenario that waits go on."""
        self._released.set()

    def _run(self) -> None:
        try:
            while not self._over.wait(_TICK_S):
                for namespace in self._fake.store.namespaces:
                    for job in self._fake.store.list("rayjobs", namespace):
                        with contextlib.suppress(Refusal):
                            self._reconcile(job)
        except BaseException as error:
            self.error = error

    def _reconcile(self, job: Manifest) -> None:
        metadata, store = job["metadata"], self._fake.store
        place = ("rayjobs", metadata["namespace"], metadata["name"])
        finalizers = metadata.get("finalizers") or []
        if "deletionTimestamp" in metadata:
            if FINALIZER in finalizers:
                left = [one for one in finalizers if one != FINALIZER]
                change = {"metadata": {"finalizers": left}}
                store.merge(*place, change, status=False, strict=False)
            return
        status = job.get("status", {}).get("jobDeploymentStatus", "")
        if status in _ENDS:
            return
        if self.scenario == "never taken up":
            return
        if FINALIZER not in finalizers:
            change = {"metadata": {"finalizers": [*finalizers, FINALIZER]}}
            store.merge(*place, change, status=False, strict=False)
        uid = metadata["uid"]
        if uid not in self._plays:
            play = Play(self._fake, job, self._released)
            self._plays[uid] = play, SCENARIOS[self.scenario](play)
        play, script = self._plays[uid]
        if job["spec"].get("suspend"):
            self._suspend(play, status)
            return
        if status == "Suspended":
            play.status("", "")
            self._plays[uid] = play, SCENARIOS[self.scenario](play)
            return
        next(script, None)

    def _suspend(self, play: Play, status: str) -> None:
        if status == "Suspended":
            return
        if status == "Suspending":
            play.clear()
            play.status("Suspended", "")
        else:
            play.status("Suspending")
