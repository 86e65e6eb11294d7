"""What Kubernetes refuses, in words: what it was, what must hold, what to do."""

import json
from collections.abc import Mapping
from typing import Any

from tuner.errors import AccessDenied, ClusterError, ConfigError, TunerError

_KUBERAY = (
    "helm repo add kuberay https://ray-project.github.io/kuberay-helm/ && "
    "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0"
)


def refusal_of(status: int, body: str, what: str, group: str, namespace: str) -> TunerError:
    """Return the error for an answer of the API; `what` was asked, such as "create the RayJob x".

    An answer that is not an object of Kubernetes means that the API has no such path at all.
    """
    answer = _read(body)
    message = str(answer.get("message") or body.strip() or "no reason given")
    if status == 401:
        return AccessDenied(
            f"Kubernetes does not know you, so it did not {what}. Log in to the cluster again, or "
            "choose another context with --context."
        )
    if status == 403 and "exceeded quota" in message:
        return ClusterError(f"Kubernetes did not {what}: {message}.")
    if status == 403:
        return AccessDenied(
            f"Kubernetes does not let you {what}: {message}. Ask for the right in the namespace "
            f"{namespace}, or choose another context with --context."
        )
    if status == 404 and not answer and group == "ray.io":
        return ClusterError(
            f"The cluster has no RayJobs of ray.io/v1, so it did not {what}: KubeRay 1.7 must be "
            f"installed. Install it with: {_KUBERAY}"
        )
    if status == 404 and (answer.get("details") or {}).get("kind") == "namespaces":
        return ConfigError(
            f"The cluster has no namespace {namespace}. Correct `namespace` in the cluster's file, "
            "choose another context with --context, or set the namespace up as k8s/README.md says."
        )
    if status == 400 and "strict decoding error" in message:
        return ConfigError(
            f"Kubernetes did not {what}, since it does not know all of its fields: {message}. "
            "tuner writes for KubeRay 1.7; is the cluster's older?"
        )
    if status in (400, 415, 422):
        return ConfigError(f"Kubernetes did not {what}: {message}.")
    return ClusterError(f"Kubernetes did not {what}: it answered {status}, {message}.")


def _read(body: str) -> Mapping[str, Any]:
    """Return the answer's Status, or nothing where it is none."""
    try:
        content = json.loads(body)
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) and content.get("kind") == "Status" else {}
