"""A bundle is judged on the very task that it was made for, or on one that its user names."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuner.cli.edits import _task_of
from tuner.editing.task import Task
from tuner.editing.task_folder import load_task
from tuner.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "datasets" / "country_capital"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task of the same name as one of ours, with other rows."""
    copy = shutil.copytree(SHIPPED, tmp_path / "country_capital")
    rows = (copy / "val" / "ood.jsonl").read_text().splitlines()
    (copy / "val" / "ood.jsonl").write_text("\n".join(rows[1:]) + "\n")
    return copy


def _manifest(task: Task, path: Path | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        task=task.name,
        task_hash=task.hash,
        task_path=path and str(path),
        edits=task.simultaneous_edits,
    )


def test_it_is_found_where_it_lay_and_not_by_its_name(folder: Path) -> None:
    task = load_task(folder)
    assert task.hash != load_task("country_capital").hash
    assert _task_of(_manifest(task, folder)).hash == task.hash


def test_a_shipped_one_is_found_by_its_name() -> None:
    task = load_task("country_capital")
    assert _task_of(_manifest(task)) == task


def test_another_one_in_its_place_is_refused(folder: Path) -> None:
    manifest = _manifest(load_task(folder), folder)
    rows = (folder / "val" / "ood.jsonl").read_text().splitlines()
    (folder / "val" / "ood.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with pytest.raises(ConfigError, match="not the one that this bundle was made for"):
        _task_of(manifest)
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"not to be found at .*--task FOLDER"):
        _task_of(manifest)


def test_one_of_the_same_name_as_ours_is_never_taken_for_it(folder: Path) -> None:
    manifest = _manifest(load_task(folder))  # as bundles from before the path was kept
    with pytest.raises(ConfigError, match="not the one that this bundle was made for"):
        _task_of(manifest)
