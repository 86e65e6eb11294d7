"""Adding an editor takes three files and no shared line, inside the clone and outside of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clone import ROOT
from tests.support.search_world import make_world
from tuner.bundle.bundle import StoredBundle

EDITOR = '''
"""Nudge: one step down the gradient of one matrix."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, final

import torch
from pydantic import Field

from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.layers import OneLayerEditor
from tuner.editing.likelihood import encode_examples, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet


@final
class Nudge(OneLayerEditor):
    """Moves one MLP output map down the gradient of the examples' loss."""

    smoke_settings: ClassVar[Mapping[str, object]] = {"depth": 0.5, "size": 0.1}
    deterministic: ClassVar[bool] = True

    size: float = Field(gt=0, description="Norm of the change.")

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change."""
        name = f"{model.architecture.mlp_modules(self.layer_of(model))[-1]}.weight"
        network = model.twin(own=[name])
        weight = network.get_parameter(name).requires_grad_(True)
        rows = encode_examples(model, examples.rows)
        with torch.enable_grad():
            loss = training_losses(network, examples.loss, rows, model.end_id).mean()
        (slope,) = torch.autograd.grad(loss, [weight])
        yield EpochEdit(WeightDelta({name: Dense(-self.size * slope / slope.norm())}), loss.item())
'''

SPACE = """\
editor: {editor}
fixed: {{depth: 0.5, layer: null, batches: 1, keep_share: 1.0, truncated_rank: null}}
search:
  size: {{type: float, low: 0.01, high: 1.0, log: true}}
"""

TEST = """
from {module} import Nudge

from tuner.testing.editors import EditorContract


class TestNudge(EditorContract):
    editor = Nudge
"""


def _run(place: Path, *command: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(path), str(place)))},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the clone with the three files, and a world to edit."""
    place = tmp_path_factory.mktemp("outside")
    (place / "nudge.py").write_text(EDITOR)
    (place / "nudge.yaml").write_text(SPACE.format(editor="nudge:Nudge"))
    (place / "test_nudge.py").write_text(TEST.format(module="nudge"))
    make_world(place / "world")
    return place


def test_an_outsiders_editor_passes_the_contract_without_our_conftest(outside: Path) -> None:
    done = _run(outside, "-m", "pytest", "test_nudge.py", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 passed" in done.stdout
    assert "warning" not in done.stdout


def test_an_editor_that_breaks_the_contract_is_told_so(outside: Path, tmp_path: Path) -> None:
    bad = EDITOR.replace("network = model.twin(own=[name])", "network = model.network")
    bad = bad.replace("with torch.enable_grad():", "if True:")
    (tmp_path / "nudge.py").write_text(bad)
    (tmp_path / "test_nudge.py").write_text(TEST.format(module="nudge"))
    some = ("-k", "llama or random_state", "-p", "no:cacheprovider")
    done = _run(tmp_path, "-m", "pytest", "test_nudge.py", "-q", *some)
    assert done.returncode == 1
    for test in ("the_model_is_bit_identical", "also_under_no_grad"):
        assert any("FAILED" in line and test in line for line in done.stdout.splitlines())


def test_an_outsiders_editor_is_checked_and_edits_from_the_command_line(outside: Path) -> None:
    done = _run(outside, "-m", "tuner", "check", "nudge.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = _run(
        outside,
        *("-m", "tuner", "edit", "--task", "world/task", "--model", "world/model"),
        *("--general", "world/general.txt", "--editor", "nudge:Nudge", "--set", "depth=0.5"),
        *("--set", "size=0.3", "--budget", "0.1", "--device", "cpu", "--out", "bundle"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert StoredBundle.load(outside / "bundle").manifest.editor == "nudge:Nudge"


def test_an_editor_in_the_clone_is_three_new_files(tmp_path: Path) -> None:
    for folder in ("tuner", "tests", "search_spaces"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    (tmp_path / "tuner/editors/nudge.py").write_text(EDITOR)
    (tmp_path / "search_spaces/nudge.yaml").write_text(SPACE.format(editor="nudge"))
    (tmp_path / "tests/unit/editors/test_nudge.py").write_text(
        "from tuner.editors import find_editor\n\n\n"
        "def test_its_name_is_its_files() -> None:\n"
        "    assert find_editor('nudge').name() == 'nudge'\n"
    )
    command = ("-m", "pytest", "tests/unit/editors", "-q", "-k", "nudge", "-p", "no:cacheprovider")
    done = _run(tmp_path, *command, path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert "nudge" in _run(tmp_path, "-m", "tuner", "list", "editors", path=tmp_path).stdout
