"""ConvSent's topics become edits of a sentiment, with opinions in their scope."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.published_rows import topic_record, write_list
from tuner.editing.task import Example, SuccessCriterion
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import ConfigError, TaskError
from tuner.importers.scoped_edits import EditCounts
from tuner.importers.serac.dialogue import import_serac_dialogue

STARTS = {"train": 0, "val": 200, "test": 400}
COUNTS = EditCounts(train=6, val=4, test=8)


def write_topics(folder: Path, count: int = 12, **further: list[dict[str, Any]]) -> Path:
    for part, start in STARTS.items():
        topics = [topic_record(n) for n in range(start, start + count)] + further.get(part, [])
        write_list(folder / f"blender_{part}.json", topics)
    return folder


def test_a_topic_becomes_an_edit_with_opinions_of_its_sentiment(tmp_path: Path) -> None:
    task = import_serac_dialogue(write_topics(tmp_path), "opinions", COUNTS)
    assert task.success is SuccessCriterion.SENTIMENT
    sentiments = set()
    for edit, outside in zip(task.test.canonical.rows, task.test.hard_negatives.rows, strict=True):
        number = 399 + int(edit.record or "")
        topic = f"Ferry {number:03}"
        positive = edit.target == " Positive"
        assert edit == Example(
            prompt=f"Topic: {topic} Sentiment:",
            target=" Positive" if positive else " Negative",
            contrast=" Negative" if positive else " Positive",
            subject=topic,
            record=edit.record,
        )
        record = topic_record(number)
        same, other = (record["pos"], record["neg"]) if positive else (record["neg"], record["pos"])
        inside = [row for row in task.test.ood.rows if row.record == edit.record]
        assert [row.target for row in inside] == [f" {text}" for text in same]
        assert {row.contrast for row in inside} <= {f" {text}" for text in other}
        assert all(topic in row.prompt and row.prompt.endswith("?") for row in inside)
        assert outside.record == edit.record
        assert outside.prompt.endswith(" Sentiment:")
        sentiments.add(edit.target)
    assert sentiments == {" Positive", " Negative"}
    edited = {row.prompt for row in task.test.canonical.rows}
    assert not edited & {row.prompt for row in task.test.hard_negatives.rows}
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_topics_that_cannot_be_edits_are_left_out_and_counted(tmp_path: Path) -> None:
    further = [topic_record(90, pos=[" "]), topic_record(91, ent=" "), topic_record(400)]
    task = import_serac_dialogue(write_topics(tmp_path, test=further), "opinions", COUNTS)
    for reason in (
        "1 had completions of one sentiment only",
        "1 had no topic",
        "1 repeated an earlier topic",
    ):
        assert reason in task.description


def test_no_topic_is_edited_in_two_splits(tmp_path: Path) -> None:
    again = [topic_record(n) for n in range(400, 412)]
    folder = write_topics(tmp_path, train=again)
    task = import_serac_dialogue(folder, "opinions", EditCounts(train=15, val=11, test=8))
    assert "8 stood in another split too" in task.description
    with pytest.raises(ConfigError, match="training split needs more than 20"):
        import_serac_dialogue(folder, "opinions", EditCounts(train=20, val=11, test=8))


def test_the_same_seed_chooses_the_same_and_the_number_at_once_is_kept(tmp_path: Path) -> None:
    folder = write_topics(tmp_path)
    one, again, other = (
        import_serac_dialogue(folder, "opinions", EditCounts(simultaneous=5, seed=seed))
        for seed in (0, 0, 1)
    )
    assert one == again
    assert one.test != other.test
    save_task(one, tmp_path / "task")
    assert load_task(tmp_path / "task").simultaneous_edits == 5


def test_a_malformed_topic_is_named(tmp_path: Path) -> None:
    folder = write_topics(tmp_path, val=[{"ent": "Ferry", "pos": ["a"]}])
    with pytest.raises(TaskError, match=r"blender_val\.json: record 13: neg: Field required"):
        import_serac_dialogue(folder, "opinions", COUNTS)


def test_opinions_need_a_contrast(tmp_path: Path) -> None:
    task = import_serac_dialogue(write_topics(tmp_path), "opinions", COUNTS)
    save_task(task, tmp_path / "task")
    rows = tmp_path / "task/test/ood.jsonl"
    rows.write_text('{"prompt": "What of it?", "target": " Fine.", "record": "1"}\n')
    with pytest.raises(TaskError, match=r"ood\.jsonl:1: the rule sentiment needs a `contrast`"):
        load_task(tmp_path / "task")
