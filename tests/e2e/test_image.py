"""The container image: no engine runs here, so its recipe is linted and held to the Makefile."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clone import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_is_clean() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if linter is None:
        pytest.skip("hadolint is not installed; it comes with the dev extra")
    done = subprocess.run(
        [linter, "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_the_image_is_made_by_the_steps_that_are_tested() -> None:
    called = re.search(r"make (install .*) TORCH_INDEX", DOCKERFILE)
    assert called
    arguments = [word for word in called[1].split() if not word.startswith("PYTHON=")]
    done = subprocess.run(
        ["make", "--dry-run", *arguments, "VENV=/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "torch==" in done.stdout
    assert "--require-hashes --requirement requirements/cluster.txt" in done.stdout
    assert "--editable" not in done.stdout


def test_the_image_runs_as_somebody_else_than_root_and_holds_no_secret() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    users = re.findall(r"^USER (\S+)", stages[-1], flags=re.MULTILINE)
    assert users == ["1000:1000"]
    assert not re.search(r"(?i)(password|token|secret|api_key)", DOCKERFILE)
    assert ":latest" not in DOCKERFILE


def test_the_image_has_what_travels_with_tuner_and_nothing_else_of_the_clone() -> None:
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    assert {name for line in copied for name in line.split()} == let_in
    assert {"tuner", "search_spaces", "datasets"} <= let_in
    assert all((ROOT / name).exists() for name in let_in)
