"""Hints about rows: with file and line, and none for tasks that are as they should be."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuner.editing.task import Example, ExampleSet, LossKind, Task
from tuner.editing.task_folder import load_task, save_task, task_names
from tuner.editing.task_hints import task_hints


@pytest.fixture
def folder(task: Task, tmp_path: Path) -> Path:
    other = ExampleSet(
        loss=task.loss, rows=(Example(prompt="A big town of Mali is", target=" Bamako"),)
    )
    test = task.test.model_copy(update={"canonical": other})
    save_task(task.model_copy(update={"test": test}), tmp_path / "capitals")
    return tmp_path / "capitals"


def _add(folder: Path, part: str, *rows: dict[str, Any]) -> int:
    """Write rows behind those of a file; return the line of the first."""
    path = folder / f"{part}.jsonl"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_text(before + "".join(lines), encoding="utf-8")
    return len(before.splitlines()) + 1


def _hints(folder: Path, loss: LossKind = LossKind.LIKELIHOOD) -> list[str]:
    load_task(folder)
    return task_hints(folder, loss)


def test_a_task_as_it_should_be_has_none(folder: Path) -> None:
    assert _hints(folder) == []


@pytest.mark.parametrize("name", task_names())
def test_shipped_tasks_have_none(name: str) -> None:
    assert task_hints(name, load_task(name).loss) == []


def test_a_target_that_runs_into_its_prompt(folder: Path) -> None:
    line = _add(folder, "val/ood", {"prompt": "The capital of Peru is", "target": "Lima"})
    (hint,) = _hints(folder)
    assert hint.startswith(f"{folder}/val/ood.jsonl:{line}: prompt and target run into each other")
    assert "Peru isLima" in hint


def test_what_needs_no_blank_gets_no_hint(folder: Path) -> None:
    _add(
        folder,
        "val/ood",
        {"prompt": "日本の首都は", "target": "東京"},
        {"prompt": "He is a singer", "target": ", who sings"},
        {"prompt": 'He said "', "target": "yes"},
        {"prompt": "Question: Where?\nAnswer:\n", "target": "Lima"},
        {"prompt": "", "target": "Lima"},
    )
    assert _hints(folder) == []


def test_many_rows_of_one_flaw_are_one_hint(folder: Path) -> None:
    rows = [{"prompt": f"{number} is ", "target": "one"} for number in range(9)]
    line = _add(folder, "test/ood", *rows)
    (hint,) = _hints(folder)
    assert f"test/ood.jsonl:{line}: the prompt ends in a blank" in hint
    assert f"in line {line + 1}, {line + 2}, {line + 3}, {line + 4}, {line + 5} and 3 more" in hint


def test_prompts_to_go_on_from_that_end_in_a_blank(folder: Path) -> None:
    _add(folder, "val/generations", {"prompt": "Peru is ", "record": "Peru"})
    (hint,) = _hints(folder)
    assert "val/generations.jsonl:1: the prompt ends in a blank" in hint


def test_an_edit_that_is_there_twice_and_one_that_contradicts(folder: Path) -> None:
    first = json.loads((folder / "val/canonical.jsonl").read_text().splitlines()[1])
    line = _add(folder, "val/canonical", first, {**first, "target": " Lima"})
    twice, against = _hints(folder)
    assert f"val/canonical.jsonl:{line}: the same edit stands in line 2" in twice
    assert f"val/canonical.jsonl:{line + 1}: {first['prompt']!r} should be followed by" in against
    assert f"{first['target']!r} in line 2: these edits contradict each other" in against
    # That of two pairs one is liked better contradicts only where they are the same pair.
    assert len(_hints(folder, LossKind.PREFER)) == 1
    swapped = {**first, "target": " Lome", "contrast": " Lima"}
    _add(folder, "val/canonical", swapped, {**first, "target": " Lima", "contrast": " Lome"})
    assert "contradict" in _hints(folder, LossKind.PREFER)[-1]
    # That two things be equally likely, or unlikely, may be asked of many pairs.
    assert len(_hints(folder, LossKind.SUPPRESS)) == 1
