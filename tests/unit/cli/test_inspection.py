"""What `list` and `check` say, and how little `list` loads for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import Run
from tuner.editing.task_folder import load_task, task_names
from tuner.editors import editor_names, find_editor
from tuner.files.shipped import shipped_folder
from tuner.search import space_names
from tuner.world.provider import models


def test_a_listing_loads_no_model_library() -> None:
    listed = "import sys; sys.argv = ['tuner', 'list', '--json']\n"
    listed += "from tuner.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    listed += "print(*({'torch', 'transformers', 'ray', 'optuna'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", listed], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.rstrip().endswith("}")


def test_a_listing_has_all_that_there_is(run: Run) -> None:
    code, out, _ = run("list", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["models"] == {f"builtin:{n}": str(path) for n, path in models().items()}
    assert tuple(found["tasks"]) == task_names()
    assert tuple(found["editors"]) == editor_names()
    assert tuple(found["spaces"]) == space_names()
    for name, said in found["tasks"].items():
        assert said == " ".join(load_task(name).description.split("\n\n")[0].split())
    for name, said in found["editors"].items():
        assert said == " ".join((find_editor(name).__doc__ or "").split("\n\n")[0].split())


def test_a_task_that_cannot_be_used_is_listed_so_beside_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("country_capital", "temporal"):
        shutil.copytree(shipped_folder("datasets") / name, tmp_path / name)
    (tmp_path / "temporal" / "task.yaml").write_text("name: [\n")
    for module in ("tuner.cli.inspection", "tuner.editing.task_folder"):
        monkeypatch.setattr(f"{module}.shipped_folder", lambda _: tmp_path)
    code, out, _ = run("list", "tasks", "--json")
    tasks = json.loads(out)["tasks"]
    assert code == 0
    assert tasks["country_capital"] == load_task("country_capital").description
    assert tasks["temporal"].startswith(f"cannot be used: {tmp_path / 'temporal' / 'task.yaml'}:")
    code, out, _ = run("data", "list", "--json")
    assert code == 0
    assert json.loads(out)["tasks"]["country_capital"]["canonical"] > 0


def test_tasks_and_spaces_are_checked_by_name(run: Run) -> None:
    code, out, _ = run("check", "temporal", "lora")
    assert (code, out.splitlines()) == (0, ["temporal: fine", "lora: fine"])
    code, out, _ = run("check", "temporel", "--json")
    assert code == 2
    assert "Did you mean 'temporal'" in json.loads(out)["temporel"]["problems"][0]
