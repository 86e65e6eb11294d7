"""The back end for Kubernetes with KubeRay."""
