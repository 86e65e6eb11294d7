"""A study as a Kubernetes RayJob or a job of Ray: checked, sent, and followed.

Names load when they are first used: who asks how a study goes needs no model library.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from tuner.launch.backend import Backend as Backend
    from tuner.launch.driver_log import LogSource as LogSource
    from tuner.launch.driver_log import log_lines as log_lines
    from tuner.launch.following import FollowObserver as FollowObserver
    from tuner.launch.following import follow as follow
    from tuner.launch.kubernetes.backend import KubernetesBackend as KubernetesBackend
    from tuner.launch.kubernetes.client import KubernetesApi as KubernetesApi
    from tuner.launch.kubernetes.client import connect as connect
    from tuner.launch.kubernetes.cluster import ClusterConfig as ClusterConfig
    from tuner.launch.kubernetes.cluster import cluster_names as cluster_names
    from tuner.launch.kubernetes.cluster import load_cluster as load_cluster
    from tuner.launch.kubernetes.lifecycle import delete as delete
    from tuner.launch.kubernetes.lifecycle import list_studies as list_studies
    from tuner.launch.kubernetes.lifecycle import resume as resume
    from tuner.launch.kubernetes.lifecycle import stop as stop
    from tuner.launch.kubernetes.lifecycle import study_status as study_status
    from tuner.launch.kubernetes.manifests import as_yaml as as_yaml
    from tuner.launch.kubernetes.manifests import read_rayjob as read_rayjob
    from tuner.launch.kubernetes.rayjob import RayJob as RayJob
    from tuner.launch.kubernetes.render import ConfigMap as ConfigMap
    from tuner.launch.kubernetes.render import Rendered as Rendered
    from tuner.launch.kubernetes.render import render as render
    from tuner.launch.kubernetes.submit import submit as submit
    from tuner.launch.names import legal_name as legal_name
    from tuner.launch.ray.backend import RayBackend as RayBackend
    from tuner.launch.status import LaunchedPod as LaunchedPod
    from tuner.launch.status import LaunchedStudy as LaunchedStudy
    from tuner.launch.status import LaunchState as LaunchState

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backend": ["Backend"],
        "driver_log": ["LogSource", "log_lines"],
        "following": ["FollowObserver", "follow"],
        "kubernetes.backend": ["KubernetesBackend"],
        "kubernetes.client": ["KubernetesApi", "connect"],
        "kubernetes.cluster": ["ClusterConfig", "cluster_names", "load_cluster"],
        "kubernetes.lifecycle": ["delete", "list_studies", "resume", "stop", "study_status"],
        "kubernetes.manifests": ["as_yaml", "read_rayjob"],
        "kubernetes.rayjob": ["RayJob"],
        "kubernetes.render": ["ConfigMap", "Rendered", "render"],
        "kubernetes.submit": ["submit"],
        "names": ["legal_name"],
        "ray.backend": ["RayBackend"],
        "status": ["LaunchState", "LaunchedPod", "LaunchedStudy"],
    },
)
