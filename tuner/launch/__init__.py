"""A study as a Kubernetes RayJob: what is sent, checked before it is sent."""

from tuner.launch.cluster import ClusterConfig, cluster_names, load_cluster
from tuner.launch.manifests import as_yaml, read_rayjob
from tuner.launch.names import legal_name
from tuner.launch.rayjob import RayJob
from tuner.launch.render import ConfigMap, Rendered, render

__all__ = [
    "ClusterConfig",
    "ConfigMap",
    "RayJob",
    "Rendered",
    "as_yaml",
    "cluster_names",
    "legal_name",
    "load_cluster",
    "read_rayjob",
    "render",
]
