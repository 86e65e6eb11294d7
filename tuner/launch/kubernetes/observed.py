"""What we read of the cluster's objects; everything else in them is passed over."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, final

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class _Seen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        """Leave out what the API writes as null: there is nothing to say."""
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


@final
class Owner(_Seen):
    """What an object goes with when it is deleted."""

    uid: str


@final
class Metadata(_Seen):
    """What is known of every object."""

    name: str
    uid: str
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[Owner, ...] = ()
    finalizers: tuple[str, ...] = ()

    @property
    def created(self) -> datetime:
        """When it was made."""
        return self.creation_timestamp or _LONG_AGO


@final
class Condition(_Seen):
    """One thing that holds of an object, or does not."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


@final
class RayJobSpec(_Seen):
    """What was asked for."""

    suspend: bool = False
    backoff_limit: int = 0
    active_deadline_seconds: int | None = None
    pre_running_deadline_seconds: int | None = None


@final
class RayJobStatus(_Seen):
    """What KubeRay's operator says of a RayJob."""

    job_status: str = ""
    job_deployment_status: str = ""
    ray_cluster_name: str = ""
    reason: str = ""
    message: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    failed: int = 0


class _Object(_Seen):
    metadata: Metadata


@final
class SeenRayJob(_Object):
    """A study."""

    spec: RayJobSpec
    status: RayJobStatus = RayJobStatus()


@final
class RayClusterStatus(_Seen):
    """What KubeRay's operator says of a RayCluster."""

    conditions: tuple[Condition, ...] = ()


@final
class SeenRayCluster(_Object):
    """The cluster of one attempt."""

    status: RayClusterStatus = RayClusterStatus()


@final
class Waiting(_Seen):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


@final
class Terminated(_Seen):
    """How a container ended."""

    reason: str = ""
    message: str = ""
    exit_code: int = 0


@final
class ContainerState(_Seen):
    """Waiting, running or ended."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None
    running: dict[str, Any] | None = None


@final
class ContainerStatus(_Seen):
    """What the node says of a container."""

    name: str
    image: str = ""
    state: ContainerState = ContainerState()


@final
class PodStatus(_Seen):
    """What scheduler and node say of a pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


@final
class SeenPod(_Object):
    """A head, a worker or a submitter."""

    status: PodStatus = PodStatus()

    def container(self, name: str) -> ContainerStatus | None:
        """Return what is said of a container, once something is."""
        return next((one for one in self.status.container_statuses if one.name == name), None)


@final
class Involved(_Seen):
    """The object that an event is about."""

    kind: str = ""
    name: str = ""
    uid: str = ""


@final
class SeenEvent(_Object):
    """Something that happened to an object."""

    involved_object: Involved
    type: str = ""
    reason: str = ""
    message: str = ""
    first_timestamp: datetime | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None

    @property
    def when(self) -> datetime:
        """When it happened last."""
        return (
            self.last_timestamp or self.event_time or self.first_timestamp or self.metadata.created
        )
