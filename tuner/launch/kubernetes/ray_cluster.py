"""The Ray cluster of a RayJob: its head, its workers, and how they come and go.

Source: KubeRay, ray-operator/controllers/ray/utils/validation.go and apis/ray/v1.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, final

from pydantic import Field, field_validator, model_validator

from tuner.launch.kubernetes.objects import (
    Dns1035Label,
    KubernetesObject,
    Labels,
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

_LEAST_HEAD_MEMORY = "4Gi"
_TOKENS_SINCE = (2, 52)
_PRIORITIES_SINCE = (2, 56)
_RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
_V2_VARIABLE = "RAY_enable_autoscaler_v2"
_REDIS_VARIABLES = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
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
        idle = [group for group in self.worker_group_specs if group.replicas == 0]
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


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:3]):
        raise ValueError(f"rayVersion must be a version such as 2.60.0, but got {text!r}")
    return tuple(int(part) for part in parts[:3])
