"""Which backend a verb means: a cluster of Kubernetes, or one of Ray."""

from typing import TYPE_CHECKING

from tuner.errors import ConfigError
from tuner.settings import read_environment

if TYPE_CHECKING:
    from tuner.launch import Backend


def require_backend(cluster: str | None, ray_address: str | None, context: str | None) -> "Backend":
    """Return the backend that the options name, or else TUNER_CLUSTER.

    Raises:
        ConfigError: they name none or two, or one that there is not.
    """
    if cluster is None and ray_address is None:
        cluster = read_environment().cluster
    backend = find_backend(cluster, ray_address, context)
    if backend is None:
        raise ConfigError(
            "One of --cluster (Kubernetes) and --ray-address (a Ray cluster) must say where the "
            "study is."
        )
    return backend


def find_backend(
    cluster: str | None, ray_address: str | None, context: str | None
) -> "Backend | None":
    """Return the backend that the options name; None where they mean this machine.

    Raises:
        ConfigError: they name two, or one that there is not.
    """
    if cluster is not None and ray_address is not None:
        raise ConfigError("--cluster and --ray-address must not be given together.")
    if cluster is not None:
        from tuner.launch import KubernetesBackend

        return KubernetesBackend(cluster, context)
    if ray_address is not None:
        from tuner.launch import RayBackend

        if context is not None:
            raise ConfigError("--context must go with --cluster: it is of Kubernetes.")
        return RayBackend(ray_address)
    return None
