"""A study's RayJob: the subset of KubeRay 1.7's API that we write, with the rules of its operator.

The schema in the cluster lets pass what the operator then refuses as `ValidationFailed`, or what
hangs; here it is refused before anything is sent.

Source: KubeRay, ray-operator/controllers/ray/utils/validation.go and apis/ray/v1.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, final

from pydantic import Field, field_validator, model_validator

from tuner.errors import ConfigError
from tuner.files.yaml_file import parse_yaml
from tuner.launch.kubernetes.objects import (
    Dns1035Label,
    KubernetesObject,
    Labels,
    ObjectMeta,
    Quantity,
    amount,
)
from tuner.launch.kubernetes.pods import (
    Container,
    EnvVar,
    PodTemplate,
    ResourceRequirements,
    SecurityContext,
    VolumeMount,
    check_image,
)
from tuner.validation import show_value

MOST_IN_NAME = 47
"""KubeRay adds 16 characters to a RayJob's name for its pods and services."""

_LEAST_HEAD_MEMORY = "4Gi"
_TOKENS_SINCE = (2, 52)
_PRIORITIES_SINCE = (2, 56)
_RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
_V2_VARIABLE = "RAY_enable_autoscaler_v2"
_REDIS_VARIABLES = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
_CLUSTER_LABEL = "ray.io/cluster"

_ALPHA = "it is alpha in KubeRay 1.7, and its operator answers ValidationFailed where it is off."


@final
class AuthOptions(KubernetesObject):
    """Who may talk to Ray: those with the token, since its job server runs whatever it is sent."""

    refused: ClassVar[Mapping[str, str]] = {
        "enableK8sTokenAuth": "KubeRay does not support it for RayJobs. Use `mode: token`."
    }

    mode: Literal["token", "disabled"]
    secret_name: str | None = None

    @model_validator(mode="after")
    def _is_on(self) -> Self:
        if self.mode != "token":
            raise ValueError(
                f"authOptions.mode must be token, but is {self.mode}: without, everybody who "
                "reaches the head can run code there"
            )
        return self


@final
class AutoscalerOptions(KubernetesObject):
    """How workers come and go. Its container runs beside the head's and inherits nothing."""

    version: Literal["v1", "v2"] | None = None
    image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    idle_timeout_seconds: int | None = Field(default=None, gt=0)
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    env: tuple[EnvVar, ...] | None = None
    volume_mounts: tuple[VolumeMount, ...] | None = None
    resources: ResourceRequirements | None = None
    security_context: SecurityContext | None = None

    @model_validator(mode="after")
    def _may_start(self) -> Self:
        if self.image is not None:
            check_image(self.image)
        if self.security_context is None:
            raise ValueError(
                "autoscalerOptions must have a securityContext: the autoscaler's container does "
                "not inherit the head's, and PodSecurity `restricted` then forbids the head "
                "without a word in the RayJob. Write `securityContext: {allowPrivilegeEscalation: "
                "false, capabilities: {drop: [ALL]}}`"
            )
        return self


class _Group(KubernetesObject):
    """Pods of one kind: the head, or workers."""

    ray_start_params: dict[str, str]
    labels: Labels | None = None
    resources: dict[str, Quantity] | None = None
    template: PodTemplate

    @field_validator("ray_start_params", mode="before")
    @classmethod
    def _are_words(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if not isinstance(value, str):
                raise ValueError(
                    f"the value of {key} must be text, but is the {type(value).__name__} "
                    f"{value!r}; write {key}: '{value}'"
                )
        return values

    @model_validator(mode="after")
    def _says_things_once(self) -> Self:
        both = [key for key in _RESOURCE_PARAMETERS if self.ray_start_params.get(key)]
        if both and self.resources:
            raise ValueError(
                f"rayStartParams and resources of a group must not both say what it has, but "
                f"rayStartParams has {', '.join(both)} and resources has "
                f"{', '.join(self.resources)}; keep one of them"
            )
        if "labels" in self.ray_start_params:
            raise ValueError("rayStartParams must not have labels; write them as the group's")
        if "redis-username" in self.ray_start_params or "redis-password" in self.ray_start_params:
            raise ValueError(
                "rayStartParams must not name Redis: a search is continued from its ledger"
            )
        return self

    @property
    def ray(self) -> Container:
        """The container that Ray runs in: the first."""
        return self.template.spec.containers[0]


@final
class HeadGroup(_Group):
    """The head: Ray's own state, its job server, and the driver of the study."""

    service_type: Literal["ClusterIP"] | None = None

    @model_validator(mode="after")
    def _can_live(self) -> Self:
        memory = self.ray.resources.limits["memory"]
        if amount(memory) < amount(_LEAST_HEAD_MEMORY):
            raise ValueError(
                f"the head must have at least {_LEAST_HEAD_MEMORY} of memory, but has {memory}: "
                "with less it is killed, and the study with it"
            )
        for name in _REDIS_VARIABLES:
            if self.ray.variable(name) is not None:
                raise ValueError(
                    f"the head must not have the variable {name}, which turns on fault tolerance "
                    "by Redis behind the operator's back; a search is continued from its ledger"
                )
        return self


@final
class WorkerGroup(_Group):
    """Workers of one kind."""

    group_name: Dns1035Label
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)
    num_of_hosts: int = Field(default=1, gt=0)
    idle_timeout_seconds: int | None = Field(default=None, gt=0)
    priority: int | None = None

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas or self.max_replicas == 0:
            raise ValueError(
                "minReplicas <= replicas <= maxReplicas and maxReplicas > 0 must hold, but the "
                f"group {self.group_name} has {self.min_replicas}, {self.replicas} and "
                f"{self.max_replicas}"
            )
        return self


@final
class RayClusterSpec(KubernetesObject):
    """The cluster that KubeRay makes for one study."""

    refused: ClassVar[Mapping[str, str]] = {
        "networkPolicy": f"{_ALPHA} The NetworkPolicies of k8s/ do its work.",
        "tlsOptions": _ALPHA,
        "historyServerOptions": _ALPHA,
        "gcsFaultToleranceOptions": (
            "it is for clusters that live long; a search is continued from its ledger by "
            "`backoffLimit`."
        ),
        "suspend": "suspend the RayJob instead.",
    }

    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...] = ()

    @model_validator(mode="after")
    def _scales(self) -> Self:
        if self.enable_in_tree_autoscaling and self.autoscaler_options is None:
            raise ValueError(
                "enableInTreeAutoscaling must have autoscalerOptions with a securityContext, but "
                "has none: PodSecurity `restricted` forbids the head otherwise"
            )
        if self.autoscaler_options is not None and not self.enable_in_tree_autoscaling:
            raise ValueError(
                "autoscalerOptions must have enableInTreeAutoscaling: true, without which KubeRay "
                "passes them over"
            )
        if self.head_group_spec.ray.variable(_V2_VARIABLE) is not None:
            raise ValueError(
                f"the head must not have the variable {_V2_VARIABLE}; write "
                "`autoscalerOptions: {version: v2}`"
            )
        if self.scales_by_v2:
            for where, policy in self._restart_policies():
                if policy not in (None, "Never"):
                    raise ValueError(
                        f"restartPolicy of {where} must be Never under the autoscaler v2, which "
                        f"replaces pods itself, but is {policy}"
                    )
        idle = [one for one in self.worker_group_specs if one.replicas == 0]
        if idle and not self.enable_in_tree_autoscaling:
            raise ValueError(
                f"the group {idle[0].group_name} must have replicas, or enableInTreeAutoscaling "
                "must be true; it has 0 and nothing would ever start any"
            )
        return self

    @model_validator(mode="after")
    def _is_new_enough(self) -> Self:
        version = _version(self.ray_version)
        if version < _TOKENS_SINCE:
            raise ValueError(
                f"authOptions.mode token must have rayVersion 2.52 or later, but got "
                f"{self.ray_version}; use an image with a later Ray"
            )
        for group in self.worker_group_specs:
            if group.priority is not None and (
                version < _PRIORITIES_SINCE or not self.scales_by_v2
            ):
                raise ValueError(
                    f"the priority of the group {group.group_name} must have rayVersion 2.56 or "
                    f"later and the autoscaler v2, but got {self.ray_version} and "
                    f"{self._autoscaler}"
                )
            if group.idle_timeout_seconds is not None and not self.scales_by_v2:
                raise ValueError(
                    f"idleTimeoutSeconds of the group {group.group_name} must have the autoscaler "
                    f"v2, but got {self._autoscaler}; write it in autoscalerOptions"
                )
        return self

    @model_validator(mode="after")
    def _names_groups_once(self) -> Self:
        names = [group.group_name for group in self.worker_group_specs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"each worker group must have a name of its own, but got {names}")
        return self

    @property
    def scales_by_v2(self) -> bool:
        """Whether the second autoscaler is at work."""
        options = self.autoscaler_options
        return self.enable_in_tree_autoscaling and options is not None and options.version == "v2"

    @property
    def _autoscaler(self) -> str:
        if not self.enable_in_tree_autoscaling:
            return "no autoscaler"
        return "the autoscaler v2" if self.scales_by_v2 else "the autoscaler v1"

    def _restart_policies(self) -> Iterator[tuple[str, str | None]]:
        yield "the head", self.head_group_spec.template.spec.restart_policy
        for group in self.worker_group_specs:
            yield f"the group {group.group_name}", group.template.spec.restart_policy


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
            twice = {one for one in policies if policies.count(one) > 1}
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


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:3]):
        raise ValueError(f"rayVersion must be a version such as 2.60.0, but got {text!r}")
    return tuple(int(part) for part in parts[:3])
