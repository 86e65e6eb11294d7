"""What a study may use of a Kubernetes cluster: one frozen, checked object, from YAML."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Self, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tuner.errors import ConfigError, unknown_name
from tuner.files.yaml_file import load_yaml
from tuner.launch.kubernetes.objects import (
    Dns1035Label,
    Dns1123Label,
    Labels,
    Quantity,
    Subdomain,
    amount,
)
from tuner.launch.kubernetes.pods import EnvVar, Toleration, check_image
from tuner.tracking.location import check_uri, is_server, masked

_PRESETS = Path(__file__).parent / "presets"
_LEAST_HEAD_MEMORY = "4Gi"

Image = Annotated[str, AfterValidator(check_image)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class _Pods(_Part):
    """What pods of one kind ask for, and on which nodes they may stand."""

    cpu: Quantity
    memory: Quantity
    node_selector: Labels = Field(default={}, description="Labels that the nodes must have.")
    tolerations: tuple[Toleration, ...] = Field(
        default=(), description="Node taints that pods tolerate, such as those of spot nodes."
    )
    priority_class: Subdomain | None = None


@final
class HeadPods(_Pods):
    """The head, which runs the driver and no trial. Keep it off spot nodes."""

    cpu: Quantity = "1"
    memory: Quantity = _LEAST_HEAD_MEMORY

    @field_validator("memory")
    @classmethod
    def _is_enough(cls, memory: str) -> str:
        if amount(memory) < amount(_LEAST_HEAD_MEMORY):
            raise ValueError(f"the head must have at least {_LEAST_HEAD_MEMORY}, or it is killed")
        return memory


@final
class WorkerPods(_Pods):
    """Workers of one kind, which come and go with the trials. They may stand on spot nodes."""

    name: Dns1035Label
    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    gpus: int = Field(default=0, ge=0, description="GPUs of a worker.")
    gpu_resource: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/gpu$")
    least: int = Field(default=0, ge=0, description="Workers that stay, also without a trial.")
    most: int = Field(gt=0, description="Workers at a time.")
    idle_timeout_s: int = Field(default=120, gt=0, description="How long an idle worker stays.")

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.least > self.most:
            raise ValueError(
                f"`least` must not exceed `most`, but the workers {self.name} have {self.least} "
                f"and {self.most}"
            )
        if amount(self.cpu) < 1:
            raise ValueError(
                f"a worker must have at least one cpu, since a trial takes one, but the workers "
                f"{self.name} have {self.cpu}"
            )
        return self


@final
class SecretValue(_Part):
    """One value in a Secret of the namespace. Only its place is ever written."""

    secret: Subdomain
    key: str = Field(pattern=r"^[-._A-Za-z0-9]+$")


@final
class Mlflow(_Part):
    """The MLflow server that shows the study, and who may write to it."""

    uri: str
    username: SecretValue | None = None
    password: SecretValue | None = None

    @model_validator(mode="after")
    def _is_a_server(self) -> Self:
        # A rule of the field alone would quote the address, and with it a password.
        if masked(self.uri) != self.uri:
            raise ValueError(_withheld("the URI of MLflow must hold no password"))
        try:
            check_uri(self.uri)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if not is_server(self.uri):
            raise ValueError(
                "the URI of MLflow must be a server's, http or https: a database on the head "
                f"would end with it, but got {self.uri!r}"
            )
        return self

    @model_validator(mode="after")
    def _is_authenticated_in_full(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("MLflow must be given both `username` and `password`, or neither")
        return self


@final
class Disk(_Part):
    """A claimed disk and where pods see it."""

    name: Dns1123Label
    claim: Subdomain
    path: str = Field(pattern=r"^/[^:]+$")
    read_only: bool = True

    def holds(self, path: str) -> bool:
        """Return whether a path lies on the disk."""
        return PurePosixPath(path).is_relative_to(self.path)


_RESERVED = ("studies", "study", "cache")


@final
class ClusterConfig(_Part):
    """Where and with what studies run on one Kubernetes cluster. It holds no secret."""

    namespace: Dns1123Label = "tuner"
    image: Image = Field(description="The image of the head, and of workers without a GPU.")
    gpu_image: Image | None = Field(
        default=None, description="The image of workers with a GPU; by default `image`."
    )
    pull_secret: Subdomain | None = Field(
        default=None, description="Secret with the credentials of the images' registry."
    )
    ray_version: str = Field(
        default="2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="The Ray of the images."
    )
    user: int = Field(default=1000, gt=0, description="User and group that the pods run as.")
    service_account: Subdomain = "tuner-search"
    head: HeadPods = HeadPods()
    workers: tuple[WorkerPods, ...] = Field(min_length=1)
    mlflow: Mlflow
    ledger: SecretValue = Field(
        default=SecretValue(secret="tuner-ledger", key="url"),
        description="The address of the ledger's database.",
    )
    studies: Disk = Field(
        default=Disk(name="studies", claim="tuner-studies", path="/studies", read_only=False),
        description="The disk that all pods of a study share: records, bundles, reports.",
    )
    disks: tuple[Disk, ...] = Field(
        default=(), description="Further disks, with general text and models for instance."
    )
    environment: dict[str, str] = Field(default={}, description="Variables of all pods; no secret.")
    queue: str | None = Field(
        default=None, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", description="A queue of Kueue."
    )
    backoff_limit: int = Field(
        default=3, ge=0, description="How often a lost cluster is made anew; the study goes on."
    )
    start_deadline_s: int = Field(
        default=1800, gt=0, description="How long a cluster may take until the study runs."
    )
    deadline_s: int | None = Field(
        default=7 * 24 * 3600, gt=0, description="How long a study may take in all."
    )
    keep_cluster_s: int = Field(
        default=600, ge=0, description="How long a cluster stays after its study, for a look."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [group.name for group in self.workers]
        if len(set(names)) < len(names):
            raise ValueError(f"each group of workers must have a name of its own, but got {names}")
        disks = (self.studies, *self.disks)
        for kind, values in (
            ("name", [disk.name for disk in disks]),
            ("path", [disk.path for disk in disks]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"each disk must have a {kind} of its own, but got {values}")
        taken = [disk.name for disk in self.disks if disk.name in _RESERVED]
        if taken:
            raise ValueError(
                f"a disk must not be called one of {', '.join(_RESERVED)}, which tuner uses, but "
                f"one is called {taken[0]!r}"
            )
        if self.studies.read_only:
            raise ValueError("the disk of `studies` must have `read_only: false`")
        if self.deadline_s is not None and self.deadline_s <= self.start_deadline_s:
            raise ValueError(
                f"`deadline_s` must exceed `start_deadline_s`, but got {self.deadline_s} and "
                f"{self.start_deadline_s}"
            )
        return self

    @field_validator("environment")
    @classmethod
    def _holds_no_secret(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            try:
                EnvVar(name=name, value=value)
            except ValueError:
                raise ValueError(
                    _withheld(f"the variable {name} must be a variable's name and hold no secret")
                ) from None
        return values


def cluster_names() -> tuple[str, ...]:
    """Return the clusters that are described with tuner, one for each overlay of `k8s/`."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml")))


def load_cluster(name_or_path: str) -> ClusterConfig:
    """Return a cluster that is described with tuner, by name, or one of your own, by path.

    Raises:
        ConfigError: there is no such cluster, or its file breaks rules; all are reported, one
            `file:line` each.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        if name_or_path not in cluster_names():
            raise unknown_name("cluster", name_or_path, cluster_names())
        path = _PRESETS / f"{name_or_path}.yaml"
    return load_yaml(path, ClusterConfig)


def _withheld(rule: str) -> str:
    return f"{rule}; keep it in a Secret"
