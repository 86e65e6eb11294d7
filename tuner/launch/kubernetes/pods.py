"""The pods that we write: a subset of Kubernetes' core API, within PodSecurity `restricted`.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self, final

from pydantic import Field, model_validator

from tuner.launch.kubernetes.objects import (
    Dns1123Label,
    KubernetesObject,
    ObjectMeta,
    Quantity,
    Subdomain,
    amount,
)

_NEEDED_REQUESTS = ("cpu", "memory")
_CREDENTIALS_IN_URL = re.compile(r"://[^\s:/@]*:[^\s/@]+@")
_SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|api_key|access_key)")
_DEVICE = re.compile(r"^[a-z0-9.-]+/gpu$")
_FORBIDDEN = "PodSecurity `restricted` forbids it."


@final
class Capabilities(KubernetesObject):
    """Linux capabilities of a container: all are dropped."""

    refused: ClassVar[Mapping[str, str]] = {"add": "no container of ours needs a capability."}

    drop: tuple[str, ...]

    @model_validator(mode="after")
    def _drops_all(self) -> Self:
        if "ALL" not in self.drop:
            raise ValueError(
                f"capabilities must drop ALL under PodSecurity `restricted`, but drops "
                f"{list(self.drop)}; write `drop: [ALL]`"
            )
        return self


@final
class SeccompProfile(KubernetesObject):
    """Which system calls are filtered."""

    type: Literal["RuntimeDefault", "Localhost"]
    localhost_profile: str | None = None


@final
class SecurityContext(KubernetesObject):
    """What a container may do: nothing that PodSecurity `restricted` forbids."""

    refused: ClassVar[Mapping[str, str]] = {
        "privileged": _FORBIDDEN,
        "procMount": _FORBIDDEN,
    }

    allow_privilege_escalation: bool
    capabilities: Capabilities
    read_only_root_filesystem: bool | None = None
    run_as_non_root: bool | None = None
    run_as_user: int | None = Field(default=None, ge=0)
    run_as_group: int | None = Field(default=None, ge=0)
    seccomp_profile: SeccompProfile | None = None

    @model_validator(mode="after")
    def _is_restricted(self) -> Self:
        if self.allow_privilege_escalation:
            raise ValueError(
                "allowPrivilegeEscalation must be false under PodSecurity `restricted`, but is true"
            )
        if self.run_as_user == 0 or self.run_as_non_root is False:
            raise ValueError("a container must not run as root; leave it to the pod's runAsUser")
        return self


@final
class PodSecurityContext(KubernetesObject):
    """As whom a pod runs: never root."""

    run_as_non_root: bool
    run_as_user: int | None = Field(default=None, ge=0)
    run_as_group: int | None = Field(default=None, ge=0)
    fs_group: int | None = Field(default=None, ge=0)
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    seccomp_profile: SeccompProfile

    @model_validator(mode="after")
    def _is_restricted(self) -> Self:
        if not self.run_as_non_root or self.run_as_user == 0:
            raise ValueError(
                "a pod must run as a user other than root under PodSecurity `restricted`; write "
                "`runAsNonRoot: true` and a `runAsUser` above 0"
            )
        return self


@final
class SecretKeySelector(KubernetesObject):
    """One value of a Secret, which the manifest names and does not hold."""

    name: Subdomain
    key: str = Field(min_length=1)


@final
class FieldSelector(KubernetesObject):
    """A fact of the pod itself, such as its name."""

    field_path: str


@final
class EnvVarSource(KubernetesObject):
    """Where the value of an environment variable comes from."""

    secret_key_ref: SecretKeySelector | None = None
    field_ref: FieldSelector | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.secret_key_ref is None) == (self.field_ref is None):
            raise ValueError("valueFrom must name one source: `secretKeyRef` or `fieldRef`")
        return self


@final
class EnvVar(KubernetesObject):
    """An environment variable; secrets come from Secrets."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str | None = None
    value_from: EnvVarSource | None = None

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError(
                f"the variable {self.name} must have either `value` or `valueFrom`, and only one"
            )
        secret = self.value is not None and (
            _CREDENTIALS_IN_URL.search(self.value) or _SECRET_NAME.search(self.name)
        )
        if secret:
            # The value is not quoted: it may be what must not be seen.
            raise ValueError(
                f"the variable {self.name} must not hold a secret in the manifest; keep it in a "
                "Secret and write `valueFrom: {secretKeyRef: {name: …, key: …}}`"
            )
        return self


@final
class ResourceRequirements(KubernetesObject):
    """What a container asks for and may take at most."""

    requests: dict[str, Quantity]
    limits: dict[str, Quantity]

    @model_validator(mode="after")
    def _are_sane(self) -> Self:
        absent = [name for name in _NEEDED_REQUESTS if name not in self.requests]
        if absent:
            raise ValueError(
                f"requests must name {' and '.join(absent)}: without, the scheduler places the pod "
                "where it does not fit"
            )
        if "memory" not in self.limits:
            raise ValueError(
                "limits must name memory: Ray takes the limit for the size of the machine"
            )
        for name, asked in self.requests.items():
            most = self.limits.get(name)
            if most is not None and amount(asked) > amount(most):
                raise ValueError(
                    f"the request of {name} must not exceed its limit, but {asked} is more than "
                    f"{most}"
                )
        for name in sorted({*self.requests, *self.limits}):
            if not _DEVICE.match(name):
                continue
            wanted, limit = self.requests.get(name), self.limits.get(name)
            if limit is None or wanted not in (None, limit) or amount(limit) % 1:
                raise ValueError(
                    f"{name} must be a whole number and the same in requests and limits, but got "
                    f"{wanted or 'none'} and {limit or 'none'}: a device cannot be shared"
                )
        return self


@final
class VolumeMount(KubernetesObject):
    """Where a container sees a volume of its pod."""

    name: Dns1123Label
    mount_path: str = Field(pattern=r"^/[^:]+$")
    sub_path: str | None = None
    read_only: bool | None = None


@final
class EmptyDir(KubernetesObject):
    """A folder that lives as long as its pod."""

    size_limit: Quantity | None = None
    medium: Literal["", "Memory"] | None = None


@final
class ConfigMapVolume(KubernetesObject):
    """The files of a ConfigMap."""

    name: Subdomain
    optional: bool | None = None


@final
class SecretVolume(KubernetesObject):
    """The files of a Secret."""

    secret_name: Subdomain
    optional: bool | None = None


@final
class ClaimVolume(KubernetesObject):
    """A claimed disk."""

    claim_name: Subdomain
    read_only: bool | None = None


@final
class Volume(KubernetesObject):
    """Something that the containers of a pod may mount."""

    refused: ClassVar[Mapping[str, str]] = {
        "hostPath": f"{_FORBIDDEN} Use a persistentVolumeClaim.",
        "nfs": f"{_FORBIDDEN} Use a persistentVolumeClaim.",
    }

    name: Dns1123Label
    empty_dir: EmptyDir | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        sources = (self.empty_dir, self.config_map, self.secret, self.persistent_volume_claim)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                f"the volume {self.name} must have one source: emptyDir, configMap, secret or "
                "persistentVolumeClaim"
            )
        return self


@final
class Toleration(KubernetesObject):
    """A node taint that the pod tolerates."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _can_match(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(
                f"a toleration with the operator Exists must have no value, but {self.key} has "
                f"{self.value!r}; leave it out, or write `operator: Equal`"
            )
        if self.operator == "Equal" and not self.key:
            raise ValueError("a toleration without a key must have `operator: Exists`")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds must go with `effect: NoExecute`")
        return self


@final
class ContainerPort(KubernetesObject):
    """A port that a container listens on."""

    name: str | None = Field(default=None, max_length=15)
    container_port: int = Field(gt=0, lt=65536)
    protocol: Literal["TCP", "UDP"] | None = None


@final
class Container(KubernetesObject):
    """One container of a pod."""

    name: Dns1123Label
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    working_dir: str | None = None
    env: tuple[EnvVar, ...] | None = None
    ports: tuple[ContainerPort, ...] | None = None
    resources: ResourceRequirements
    security_context: SecurityContext | None = None
    volume_mounts: tuple[VolumeMount, ...] | None = None

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        check_image(self.image)
        if self.security_context is None:
            raise ValueError(
                f"the container {self.name} must have a securityContext, also where its pod has "
                "one: PodSecurity `restricted` asks each container. Write `securityContext: "
                "{allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}`"
            )
        _refuse_twice("variable", self.name, (one.name for one in self.env or ()))
        mounts = self.volume_mounts or ()
        _refuse_twice("mount path", self.name, (one.mount_path for one in mounts))
        return self

    def variable(self, name: str) -> EnvVar | None:
        """Return an environment variable of the container, if it has it."""
        return next((one for one in self.env or () if one.name == name), None)


@final
class PullSecret(KubernetesObject):
    """The Secret with the credentials of a container registry."""

    name: Subdomain


@final
class PodSpec(KubernetesObject):
    """Containers that run together on one node."""

    refused: ClassVar[Mapping[str, str]] = {
        "hostNetwork": _FORBIDDEN,
        "hostPID": _FORBIDDEN,
        "hostIPC": _FORBIDDEN,
    }

    restart_policy: Literal["Always", "OnFailure", "Never"] | None = None
    service_account_name: Subdomain | None = None
    automount_service_account_token: bool | None = None
    priority_class_name: Subdomain | None = None
    termination_grace_period_seconds: int | None = Field(default=None, ge=0)
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    image_pull_secrets: tuple[PullSecret, ...] | None = None
    security_context: PodSecurityContext | None = None
    init_containers: tuple[Container, ...] | None = None
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.containers:
            raise ValueError("a pod must have at least one container, but has none")
        if self.security_context is None:
            raise ValueError(
                "a pod must have a securityContext under PodSecurity `restricted`; write "
                "`securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: "
                "RuntimeDefault}}`"
            )
        every = (*(self.init_containers or ()), *self.containers)
        _refuse_twice("container", "the pod", (one.name for one in every))
        names = [one.name for one in self.volumes or ()]
        _refuse_twice("volume", "the pod", iter(names))
        for container in every:
            for mount in container.volume_mounts or ():
                if mount.name not in names:
                    raise ValueError(
                        f"the container {container.name} mounts {mount.name!r}, which must be a "
                        f"volume of its pod, but the pod has {names or 'none'}"
                    )
        return self


@final
class PodTemplate(KubernetesObject):
    """What pods are made after."""

    metadata: ObjectMeta | None = None
    spec: PodSpec


def check_image(image: str) -> str:
    """Return a container image's name, if it is always the same image.

    Raises:
        ValueError: it has no tag and no digest, or the tag moves.
    """
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not name or image.strip() != image:
        raise ValueError(f"an image must be named, but got {image!r}")
    if not digest and tag in ("", "latest"):
        raise ValueError(
            f"an image must be pinned, so that every pod of a study runs the same code, but got "
            f"{image!r}; name it with a version or a digest, such as tuner:0.1.0"
        )
    return image


def _refuse_twice(kind: str, where: str, names: Iterator[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where} must have each {kind} once, but has {name} twice")
        seen.add(name)
