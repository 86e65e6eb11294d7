"""A study as a Kubernetes RayJob or a job of Ray: checked, sent, and followed.

Names load when they are first used: who asks how a study goes needs no model library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.launch.api import KubernetesApi, connect
    from tuner.launch.cluster import ClusterConfig, cluster_names, load_cluster
    from tuner.launch.driver_log import Part, log_lines
    from tuner.launch.following import Observer, follow
    from tuner.launch.kubernetes_place import KubernetesPlace
    from tuner.launch.launched import LaunchedPod, LaunchedStudy, LaunchState
    from tuner.launch.lifecycle import delete, look, look_at_all, resume, stop
    from tuner.launch.manifests import as_yaml, read_rayjob
    from tuner.launch.names import legal_name
    from tuner.launch.place import Place
    from tuner.launch.ray_place import RayPlace
    from tuner.launch.rayjob import RayJob
    from tuner.launch.rendering import ConfigMap, Rendered, render
    from tuner.launch.submission import submit

_HOMES = {
    "tuner.launch.api": ("KubernetesApi", "connect"),
    "tuner.launch.cluster": ("ClusterConfig", "cluster_names", "load_cluster"),
    "tuner.launch.driver_log": ("Part", "log_lines"),
    "tuner.launch.following": ("Observer", "follow"),
    "tuner.launch.kubernetes_place": ("KubernetesPlace",),
    "tuner.launch.launched": ("LaunchState", "LaunchedPod", "LaunchedStudy"),
    "tuner.launch.lifecycle": ("delete", "look", "look_at_all", "resume", "stop"),
    "tuner.launch.manifests": ("as_yaml", "read_rayjob"),
    "tuner.launch.names": ("legal_name",),
    "tuner.launch.place": ("Place",),
    "tuner.launch.ray_place": ("RayPlace",),
    "tuner.launch.rayjob": ("RayJob",),
    "tuner.launch.rendering": ("ConfigMap", "Rendered", "render"),
    "tuner.launch.submission": ("submit",),
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
