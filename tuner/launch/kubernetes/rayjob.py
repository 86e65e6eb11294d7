"""A study's RayJob: the subset of KubeRay 1.7's API that we write, with the rules of its operator.

The schema in the cluster lets pass what the operator then refuses as `ValidationFailed`, or what
hangs; here it is refused before anything is sent.

Source: KubeRay, ray-operator/controllers/ray/utils/validation.go and apis/ray/v1.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self, final

from pydantic import Field, field_validator, model_validator

from tuner.errors import ConfigError
from tuner.files.yaml_file import parse_yaml
from tuner.launch.kubernetes.objects import Dns1035Label, KubernetesObject, ObjectMeta
from tuner.launch.kubernetes.pods import PodTemplate
from tuner.launch.kubernetes.ray_cluster import RayClusterSpec
from tuner.validation import show_value

MOST_IN_NAME = 47
"""KubeRay adds 16 characters to a RayJob's name for its pods and services."""
_CLUSTER_LABEL = "ray.io/cluster"


@final
class DeletionCondition(KubernetesObject):
    """When a deletion rule takes effect."""

    job_status: Literal["SUCCEEDED", "FAILED"]
    ttl_seconds: int = Field(default=0, ge=0)


@final
class DeletionRule(KubernetesObject):
    """What is deleted once a job has ended."""

    policy: Literal["DeleteWorkers", "DeleteCluster", "DeleteSelf", "DeleteNone"]
    condition: DeletionCondition


# What goes first must not live longest.
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


@final
class DeletionStrategy(KubernetesObject):
    """What is deleted after a job, rule by rule."""

    refused: ClassVar[Mapping[str, str]] = {
        "onSuccess": "KubeRay keeps it for old manifests; write `deletionRules`.",
        "onFailure": "KubeRay keeps it for old manifests; write `deletionRules`.",
    }

    deletion_rules: tuple[DeletionRule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for status in ("SUCCEEDED", "FAILED"):
            rules = [rule for rule in self.deletion_rules if rule.condition.job_status == status]
            policies = [rule.policy for rule in rules]
            twice = {policy for policy in policies if policies.count(policy) > 1}
            if twice:
                raise ValueError(
                    f"a policy must have one rule per job status, but {twice.pop()} has several "
                    f"for {status}"
                )
            after = {rule.policy: rule.condition.ttl_seconds for rule in rules}
            waits = [after[policy] for policy in _DELETION_ORDER if policy in after]
            if waits != sorted(waits):
                raise ValueError(
                    "workers must go first, then the cluster, then the RayJob itself, but for "
                    f"{status} they go after {after} seconds"
                )
        return self


@final
class SubmitterConfig(KubernetesObject):
    """How often the pod that submits is tried again; it may come before the head is ready."""

    backoff_limit: int | None = Field(default=None, ge=0)


@final
class RayJobSpec(KubernetesObject):
    """One search: a cluster, what runs on it, and how it ends."""

    entrypoint: str | None = None
    submission_mode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"] = (
        "K8sJobMode"
    )
    job_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*)$")
    metadata: dict[str, str] | None = None
    runtime_env_yaml: str | None = Field(default=None, alias="runtimeEnvYAML")
    entrypoint_num_cpus: float | None = Field(default=None, ge=0)
    entrypoint_num_gpus: float | None = Field(default=None, ge=0)
    entrypoint_resources: str | None = None
    suspend: bool = False
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: int = Field(default=0, ge=0)
    deletion_strategy: DeletionStrategy | None = None
    active_deadline_seconds: int | None = None
    pre_running_deadline_seconds: int | None = None
    backoff_limit: int = Field(default=0, ge=0)
    managed_by: Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"] | None = None
    submitter_config: SubmitterConfig | None = None
    submitter_pod_template: PodTemplate | None = None
    cluster_selector: dict[str, str] | None = None
    ray_cluster_spec: RayClusterSpec | None = None

    @model_validator(mode="after")
    def _keeps_its_deadlines(self) -> Self:
        for name, seconds in (
            ("activeDeadlineSeconds", self.active_deadline_seconds),
            ("preRunningDeadlineSeconds", self.pre_running_deadline_seconds),
        ):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} must be above 0, but is {seconds}; leave it out for none")
        return self

    @model_validator(mode="after")
    def _cleans_up_in_one_way(self) -> Self:
        if self.ttl_seconds_after_finished > 0 and not self.shutdown_after_job_finishes:
            raise ValueError(
                "ttlSecondsAfterFinished must have shutdownAfterJobFinishes: true, but that is "
                "false"
            )
        if self.suspend and not self.shutdown_after_job_finishes:
            raise ValueError(
                "suspend must have shutdownAfterJobFinishes: true, but that is false; Kueue and "
                "`tuner stop` suspend"
            )
        if self.deletion_strategy is None:
            return self
        if self.shutdown_after_job_finishes:
            raise ValueError(
                "shutdownAfterJobFinishes and deletionStrategy.deletionRules must not both be "
                "set; a study that may be suspended keeps the former"
            )
        policies = {rule.policy for rule in self.deletion_strategy.deletion_rules}
        cluster = self.ray_cluster_spec
        if "DeleteWorkers" in policies and cluster and cluster.enable_in_tree_autoscaling:
            raise ValueError(
                "DeleteWorkers must not be used with enableInTreeAutoscaling, which would bring "
                "the workers back; use DeleteCluster"
            )
        if self.cluster_selector and policies & {"DeleteWorkers", "DeleteCluster"}:
            raise ValueError(
                "a RayJob with a clusterSelector must not delete the cluster, which is not its own"
            )
        return self

    @model_validator(mode="after")
    def _runs_somewhere(self) -> Self:
        if (self.ray_cluster_spec is None) == (not self.cluster_selector):
            raise ValueError(
                "a RayJob must have either a rayClusterSpec or a clusterSelector, and only one"
            )
        if self.cluster_selector:
            if not self.cluster_selector.get(_CLUSTER_LABEL):
                raise ValueError(
                    f"clusterSelector must name the cluster as {_CLUSTER_LABEL}, but has "
                    f"{self.cluster_selector}"
                )
            for name, value in (
                ("suspend", self.suspend),
                ("backoffLimit", self.backoff_limit),
                ("submissionMode: SidecarMode", self.submission_mode == "SidecarMode"),
            ):
                if value:
                    raise ValueError(
                        f"a RayJob with a clusterSelector must not have {name}: it cannot stop or "
                        "renew a cluster that is not its own"
                    )
        return self

    @model_validator(mode="after")
    def _is_submitted_in_one_way(self) -> Self:
        mode = self.submission_mode
        if mode != "K8sJobMode":
            for name, value in (
                ("submitterPodTemplate", self.submitter_pod_template),
                ("submitterConfig", self.submitter_config),
            ):
                if value is not None:
                    raise ValueError(
                        f"{name} must go with submissionMode K8sJobMode, but that is {mode}, "
                        "which has no pod of its own to submit"
                    )
        if mode == "SidecarMode" and self.ray_cluster_spec is not None:
            policy = self.ray_cluster_spec.head_group_spec.template.spec.restart_policy
            if policy not in (None, "Never"):
                raise ValueError(
                    f"restartPolicy of the head must be Never in SidecarMode, but is {policy}"
                )
        if mode == "InteractiveMode" and self.backoff_limit > 0:
            raise ValueError(
                f"InteractiveMode must have no backoffLimit, but that is {self.backoff_limit}: "
                "nobody would submit again"
            )
        if mode != "InteractiveMode" and not (self.entrypoint or "").strip():
            raise ValueError(f"a RayJob in {mode} must have an entrypoint, but has none")
        if mode == "K8sJobMode":
            self._check_submitter()
        return self

    def _check_submitter(self) -> None:
        if self.submitter_pod_template is None:
            raise ValueError(
                "K8sJobMode must have a submitterPodTemplate with a securityContext, but has "
                "none: PodSecurity `restricted` forbids the submitter that KubeRay would make"
            )
        policy = self.submitter_pod_template.spec.restart_policy
        if policy not in ("Never", "OnFailure"):
            raise ValueError(
                "restartPolicy of the submitter must be Never or OnFailure, since a Job takes no "
                f"other, but is {policy or 'not set'}"
            )

    @field_validator("runtime_env_yaml")
    @classmethod
    def _is_yaml(cls, text: str | None) -> str | None:
        try:
            content = parse_yaml(text or "{}")
        except ConfigError as error:
            raise ValueError(f"runtimeEnvYAML must be YAML, but is not: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"runtimeEnvYAML must be a mapping, but is {show_value(content)}")
        return text


@final
class RayJobMeta(ObjectMeta):
    """What the RayJob is called."""

    name: Dns1035Label

    @field_validator("name")
    @classmethod
    def _leaves_room(cls, name: str) -> str:
        if len(name) > MOST_IN_NAME:
            raise ValueError(
                f"the name of a RayJob must have at most {MOST_IN_NAME} characters, but {name!r} "
                f"has {len(name)}; KubeRay adds to it what its pods are called"
            )
        return name


@final
class RayJob(KubernetesObject):
    """A study on a cluster, as KubeRay knows it."""

    refused: ClassVar[Mapping[str, str]] = {"status": "it is the operator's to write."}

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: RayJobMeta
    spec: RayJobSpec
