"""A Kubernetes API on the loopback, and a KubeRay that plays named scenarios. For tests only.

`test_fake_kubernetes.py` states what it promises; what it does not promise it does not do.
"""

from tests.support.fake_kubernetes.kuberay import SCENARIOS, ScriptedKubeRay
from tests.support.fake_kubernetes.server import FakeKubernetes
from tests.support.fake_kubernetes.store import Refusal, Store

__all__ = ["SCENARIOS", "FakeKubernetes", "Refusal", "ScriptedKubeRay", "Store"]
