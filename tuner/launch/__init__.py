"""A study as a Kubernetes RayJob or a job of Ray: checked, sent, and followed.

Names load when they are first used: who asks how a study goes needs no model library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.launch.backend import Place
    from tuner.launch.driver_log import Part, log_lines
    from tuner.launch.following import Observer, follow
    from tuner.launch.kubernetes.backend import KubernetesPlace
    from tuner.launch.kubernetes.client import KubernetesApi, connect
    from tuner.launch.kubernetes.cluster import ClusterConfig, cluster_names, load_cluster
    from tuner.launch.kubernetes.lifecycle import delete, look, look_at_all, resume, stop
    from tuner.launch.kubernetes.manifests import as_yaml, read_rayjob
    from tuner.launch.kubernetes.rayjob import RayJob
    from tuner.launch.kubernetes.render import ConfigMap, Rendered, render
    from tuner.launch.kubernetes.submit import submit
    from tuner.launch.names import legal_name
    from tuner.launch.ray.backend import RayPlace
    from tuner.launch.status import LaunchedPod, LaunchedStudy, LaunchState

_HOMES = {
    "tuner.launch.kubernetes.client": ("KubernetesApi", "connect"),
    "tuner.launch.kubernetes.cluster": ("ClusterConfig", "cluster_names", "load_cluster"),
    "tuner.launch.driver_log": ("Part", "log_lines"),
    "tuner.launch.following": ("Observer", "follow"),
    "tuner.launch.kubernetes.backend": ("KubernetesPlace",),
    "tuner.launch.status": ("LaunchState", "LaunchedPod", "LaunchedStudy"),
    "tuner.launch.kubernetes.lifecycle": ("delete", "look", "look_at_all", "resume", "stop"),
    "tuner.launch.kubernetes.manifests": ("as_yaml", "read_rayjob"),
    "tuner.launch.names": ("legal_name",),
    "tuner.launch.backend": ("Place",),
    "tuner.launch.ray.backend": ("RayPlace",),
    "tuner.launch.kubernetes.rayjob": ("RayJob",),
    "tuner.launch.kubernetes.render": ("ConfigMap", "Rendered", "render"),
    "tuner.launch.kubernetes.submit": ("submit",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ClusterConfig",
    "ConfigMap",
    "KubernetesApi",
    "KubernetesPlace",
    "LaunchState",
    "LaunchedPod",
    "LaunchedStudy",
    "Observer",
    "Part",
    "Place",
    "RayJob",
    "RayPlace",
    "Rendered",
    "as_yaml",
    "cluster_names",
    "connect",
    "delete",
    "follow",
    "legal_name",
    "load_cluster",
    "log_lines",
    "look",
    "look_at_all",
    "read_rayjob",
    "render",
    "resume",
    "stop",
    "submit",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
