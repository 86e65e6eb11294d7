"""The task format: what it reads, what it writes back, and what it refuses, with file and line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.small_disk import python_on_small_disk
from tuner.editing.task import Example, GenerationPrompt, LossKind, SuccessCriterion
from tuner.editing.task_folder import load_task, save_task, task_names
from tuner.errors import ConfigError, TaskError

CARD: dict[str, Any] = {
    "name": "towns",
    "description": "Towns of countries.",
    "loss": "likelihood",
    "success": "likelier",
    "source": "made up",
    "licence": "Apache-2.0",
}


def row(prompt: str, target: str, contrast: str | None = None, **more: str) -> dict[str, str]:
    return (
        {"prompt": prompt, "target": target} | ({"contrast": contrast} if contrast else {}) | more
    )


def write(folder: Path, card: dict[str, Any], **changed: list[dict[str, Any]] | None) -> Path:
    """Write a task of one fact per split; `changed` replaces or removes files of `val`."""
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(card))
    for split, country in (("val", "Togo"), ("test", "Chile")):
        files: dict[str, list[dict[str, Any]] | None] = {
            "canonical": [row(f"{country} has", " Lome", " Port", record="1", subject=country)],
            "ood": [row(f"In {country} is", " Lome", " Port", record="1")],
            "neighbours": [row(f"By {country} is", " Port", " Lome", record="1")],
            "generations": [
                {"prompt": f"{country} is", "record": "1", "references": ["Lome is big."]}
            ],
            "facts": [row(f"{country} and Mauritius", " is")],
        }
        if split == "val":
            files |= changed
        (folder / split).mkdir(exist_ok=True)
        for name, rows in files.items():
            if rows is not None:
                lines = "".join(json.dumps(one) + "\n" for one in rows)
                (folder / split / f"{name}.jsonl").write_text(lines)
    return folder


def test_a_fact_task_is_read_whole(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, CARD))
    assert task.success is SuccessCriterion.LIKELIER
    assert task.threshold is None
    assert task.val.neighbours == (
        Example(prompt="By Togo is", target=" Port", contrast=" Lome", record="1"),
    )
    assert task.val.generations == (
        GenerationPrompt(prompt="Togo is", record="1", references=("Lome is big.",)),
    )
    assert task.val.facts == (Example(prompt="Togo and Mauritius", target=" is"),)
    assert task.val.canonical.rows[0].record == "1"


def test_every_task_comes_back_from_its_folder(tmp_path: Path) -> None:
    facts = load_task(write(tmp_path / "facts", CARD, generations=None))
    for task in (facts, *(load_task(name) for name in task_names())):
        save_task(task, tmp_path / task.name)
        again = load_task(tmp_path / task.name)
        assert again == task
        assert again.hash == task.hash


def test_saving_over_a_task_leaves_no_file_of_the_old_one(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "task", CARD))
    save_task(task, tmp_path / "copy")
    bare = task.val.model_copy(update={"neighbours": (), "facts": (), "generations": ()})
    save_task(task.model_copy(update={"val": bare}), tmp_path / "copy")
    assert load_task(tmp_path / "copy").val == bare


def test_what_old_tasks_hold_and_hash_is_as_it_was() -> None:
    """Studies on disk remember the hash of their task, and refuse another."""
    task = load_task("country_capital")
    assert task.success is SuccessCriterion.THRESHOLD
    assert task.hash == "5afa6e56a3c9a51ded057e443c56db4b63ca3861ce9fafaa1f373ccf5a46f7b8"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({**CARD, "threshold": 1.5}, "no other rule has one"),
        ({**CARD, "success": "threshold"}, "needs a `threshold`"),
        ({key: CARD[key] for key in CARD if key != "success"}, "needs a `threshold`"),
        ({**CARD, "loss": "prefer"}, "goes with `loss: likelihood`"),
        ({**CARD, "success": "likeliest"}, "task.yaml:6: success"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    card: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_task(write(tmp_path, card))


@pytest.mark.parametrize(
    ("part", "rows", "said"),
    [
        ("canonical", [row("Togo has", " Lome")], r"canonical.jsonl:1: the rule likelier needs"),
        ("ood", [row("In it is", " Lome", " Port"), row("x", " y")], r"ood.jsonl:2: the rule"),
        ("neighbours", [row("By it is", " Port")], r"neighbours.jsonl:1: the rule likelier needs"),
        ("neighbours", [row("By", " a", " b", record="")], r"neighbours.jsonl:1: record"),
        ("generations", [{"prompt": "Togo"}], r"generations.jsonl:1: record"),
        ("generations", [{"prompt": "T", "record": "1", "references": "a"}], r"jsonl:1: reference"),
        ("facts", [row("a", " b"), row("In Togo is", " Lome")], r"facts.jsonl:2: editors may"),
        ("facts", [row("a", " b", subject="c")], r"facts.jsonl:1: the subject"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    part: str, rows: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=said):
        load_task(write(tmp_path, CARD, **{part: rows}))


def test_neighbours_need_a_rule_that_judges_them(tmp_path: Path) -> None:
    card = {**CARD, "success": "threshold", "threshold": 1.0}
    with pytest.raises(TaskError, match=r"neighbours.jsonl: neighbours are judged by"):
        load_task(write(tmp_path, card))


def test_token_accuracy_needs_no_contrast(tmp_path: Path) -> None:
    task = load_task(
        write(tmp_path, {**CARD, "success": "tokens"}, neighbours=[row("By Togo is", " Port")])
    )
    assert task.loss is LossKind.LIKELIHOOD
    assert task.val.neighbours[0].contrast is None


def _with_training(tmp_path: Path, prompt: str) -> Path:
    folder = write(tmp_path / "towns", CARD)
    (folder / "train").mkdir()
    for name in ("canonical", "ood"):
        lines = json.dumps(row(f"{prompt} {name}", " Lome", " Port", record="9"))
        (folder / "train" / f"{name}.jsonl").write_text(f"{lines}\n")
    return folder


def test_a_task_may_hold_other_edits_to_train_on(tmp_path: Path) -> None:
    plain = load_task(write(tmp_path / "plain", CARD))
    task = load_task(_with_training(tmp_path, "Mauritius"))
    assert plain.train is None
    assert task.train is not None
    assert task.train.canonical.rows[0].prompt == "Mauritius canonical"
    assert task.hash != plain.hash
    save_task(task, tmp_path / "copy")
    assert load_task(tmp_path / "copy") == task


def write_pool(folder: Path, edits: int = 3, **more: Any) -> Path:
    """Write a task with a pool of edits in each split, two OOD rows and a hard negative each."""
    write(folder, {**CARD, "success": "sequence", **more})
    for split, country in (("val", "Togo"), ("test", "Chile")):
        numbers = [str(number) for number in range(edits)]
        files = {
            "canonical": [row(f"{country} {n}", " Lome", record=n) for n in numbers],
            "ood": [
                row(f"{country} {how} {n}", " Lome", record=n) for how in "ab" for n in numbers
            ],
            "hard_negatives": [row(f"Not {country} {n}", " Port", record=n) for n in numbers],
            "neighbours": [row(f"By {country} {n}", " Port", record=n) for n in numbers],
        }
        for name, rows in files.items():
            lines = "".join(json.dumps(one) + "\n" for one in rows)
            (folder / split / f"{name}.jsonl").write_text(lines)
    return folder


def test_a_split_is_cut_to_its_first_edits_with_all_their_rows(tmp_path: Path) -> None:
    task = load_task(write_pool(tmp_path))
    few = task.val.limited(2)
    assert [row.record for row in few.canonical.rows] == ["0", "1"]
    assert [row.record for row in few.ood.rows] == ["0", "1", "0", "1"]
    assert [row.record for row in few.hard_negatives.rows] == ["0", "1"]
    assert [row.record for row in few.neighbours] == ["0", "1"]
    assert few.facts == task.val.facts
    assert task.val.limited(None) is task.val.limited(3) is task.val


def test_the_number_of_edits_made_at_once_is_the_card_s_or_another(tmp_path: Path) -> None:
    task = load_task(write_pool(tmp_path / "pool", simultaneous_edits=2))
    assert task.simultaneous_edits == 2
    assert task.hash  # known before the copies are made, and not theirs
    one = task.with_edits(1)
    assert one.simultaneous_edits == 1
    assert one.hash != task.hash
    assert (one.val, one.test) == (task.val, task.test)
    assert task.with_edits(None) is task.with_edits(2) is task
    assert load_task(tmp_path / "pool", 3).hash == task.with_edits(3).hash
    save_task(task, tmp_path / "copy")
    assert load_task(tmp_path / "copy") == task
    with pytest.raises(ConfigError, match=r"towns with 4 edits at once: 4 edits .* val has 3"):
        task.with_edits(4)
    with pytest.raises(ConfigError, match="At least one edit"):
        task.with_edits(0)


def test_edits_that_cannot_be_told_apart_are_not_made_in_part(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each canonical row needs a `record` of its own"):
        load_task("country_capital", 10)
    with pytest.raises(TaskError, match="5 edits at once need as many canonical rows, but val has"):
        load_task(write_pool(tmp_path / "few", simultaneous_edits=5))
    folder = write_pool(tmp_path / "astray", simultaneous_edits=2)
    stray = json.dumps(row("Not Togo", " Port"))
    with (folder / "val" / "hard_negatives.jsonl").open("a") as file:
        file.write(f"{stray}\n")
    with pytest.raises(TaskError, match="hard_negatives: each row needs the `record` of an edit"):
        load_task(folder)
    folder = write_pool(tmp_path / "bare", simultaneous_edits=2)
    (folder / "test" / "ood.jsonl").write_text(json.dumps(row("Chile", " Lome", record="0")) + "\n")
    with pytest.raises(TaskError, match="test/ood: each edit needs a row in its scope"):
        load_task(folder)


@pytest.mark.parametrize("part", ["canonical", "ood"])
def test_what_is_judged_is_not_trained_on(tmp_path: Path, part: str) -> None:
    folder = write_pool(tmp_path, simultaneous_edits=2)
    (folder / "train").mkdir()
    for name in ("canonical", "ood"):
        rows = [row(f"Mauritius {name}", " Lome", record="0")]
        if name == part:
            rows.append(row("Togo 0" if part == "canonical" else "Togo a 0", " Lome", record="0"))
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (folder / "train" / f"{name}.jsonl").write_text(lines)
    with pytest.raises(TaskError, match=rf"train/{part}.jsonl:2: .* in the validation split too"):
        load_task(folder)


def test_opinions_need_their_opposites(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"canonical\.jsonl:1: the rule sentiment needs a `contrast`"
    ):
        load_task(write_pool(tmp_path, success="sentiment"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"prompt": "\ud800", "target": " a"}', "surrogate"),
        ('{"prompt": "a", "prompt": "b", "target": " a"}', "'prompt' stands twice"),
        ('{"prompt": ' + "[" * 50_000, "within one another"),
        ("9" * 5000, "5,000 digits"),
        ('{"prompt": "a", "target": null}', "target: Input should be a valid string"),
    ],
)
def test_rows_that_json_alone_would_let_through_are_refused(
    line: str, said: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "task", CARD)
    with (folder / "val" / "ood.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(TaskError, match=rf"ood\.jsonl:\d+: .*{said}"):
        load_task(folder)


def test_a_file_that_is_there_but_cannot_be_read_is_not_taken_for_absent(tmp_path: Path) -> None:
    folder = write(tmp_path / "task", CARD, facts=None)
    os.mkfifo(folder / "val" / "facts.jsonl")
    with pytest.raises(TaskError, match=r"facts\.jsonl: cannot be read: it is a named pipe"):
        load_task(folder)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "x/" * 3000])
def test_a_name_that_no_folder_can_have_is_told_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match="o task ") as error:
        load_task(name)
    assert len(str(error.value)) < 2000


def test_a_name_that_looks_like_a_number_survives_saving(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "task", CARD))
    task = task.model_copy(update={"name": "1e5", "licence": "2023-01-01"})
    save_task(task, tmp_path / "copy")
    assert load_task(tmp_path / "copy") == task


def test_a_kill_while_a_task_is_written_leaves_none_of_it(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tuner.editing.task_folder import load_task, save_task

left, flush = int(sys.argv[2]), os.fsync

def killed(descriptor):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    flush(descriptor)

os.fsync = killed
save_task(load_task("country_capital"), Path(sys.argv[1]))
"""
    out = tmp_path / "task"
    for writes in (1, 9, 24):
        ended = subprocess.run([sys.executable, "-c", script, str(out), str(writes)], check=False)
        assert ended.returncode == 9
        assert not out.exists()
    save_task(load_task("country_capital"), out)
    assert os.listdir(tmp_path) == ["task"]
    assert load_task(str(out)).hash == load_task("country_capital").hash


def test_a_task_does_not_fit_on_a_full_disk_in_words(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import DiskError
place = Path(sys.argv[1])
(place / "filler").write_bytes(bytes(40_000))
try:
    save_task(load_task("country_capital"), place / "task")
except DiskError as error:
    print("full" in str(error), os.listdir(place))
"""
    found = python_on_small_disk(tmp_path / "disk", "64k", ["-c", script, str(tmp_path / "disk")])
    assert found.stdout == "True ['filler']\n", found.stderr
