"""SERAC's questions become edits with rows in and out of their scope."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.published_rows import question_record, write_rows
from tuner.editing.task import Example, SuccessCriterion
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import ConfigError, TaskError
from tuner.importers.scoped_edits import EditCounts
from tuner.importers.serac.qa import import_serac_qa, import_serac_qa_hard

FILE = "structured_zeroshot-{}-new_annotated_final.jsonl"
STARTS = {"train": 0, "dev": 200, "test": 400}


def write_questions(folder: Path, count: int = 12, **further: list[dict[str, Any]]) -> Path:
    """Write questions for each split, and implied and True/False ones beside them."""
    for part, start in STARTS.items():
        numbers = range(start, start + count)
        rows = [question_record(n) for n in numbers] + further.get(part, [])
        write_rows(folder / FILE.format(part), rows)
        implied = [[[f"Who sailed Tern {n}?", f"Captain {n:03}", "nec"]] for n in numbers]
        (folder / f"impl_{part}.json").write_text(json.dumps(implied))
        statements = [f"Captain {n:03} sailed tern {n} - Tern {n}" for n in numbers]
        (folder / f"zsre_yn_{part}.txt").write_text("".join(f"{text}\n" for text in statements))
    return folder


def counts(**changed: int) -> EditCounts:
    return EditCounts(**({"train": 3, "val": 2, "test": 4} | changed))


def test_a_question_becomes_an_edit_with_rows_in_and_out_of_scope(tmp_path: Path) -> None:
    task = import_serac_qa(write_questions(tmp_path), "qa", counts())
    assert task.success is SuccessCriterion.SEQUENCE
    assert task.train is not None
    assert [len(half.canonical) for half in (task.train, task.val, task.test)] == [3, 2, 4]
    edit = task.test.canonical.rows[0]
    number = 399 + int(edit.record or "")
    assert edit.prompt == f"Which ship did Captain {number:03} sail?"
    assert edit.target in (f" Heron {number}", f" Egret {number}")
    assert edit.contrast == f" Tern {number}"
    same, rephrase = (row for row in task.test.ood.rows if row.record == edit.record)
    assert same == edit
    assert rephrase.prompt in (
        f"What was Captain {number:03}'s ship?",
        f"Captain {number:03} sailed on what ship?",
    )
    assert (rephrase.target, rephrase.contrast) == (edit.target, edit.contrast)
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_rows_out_of_scope_ask_for_the_true_answer_of_what_is_not_edited(tmp_path: Path) -> None:
    task = import_serac_qa(write_questions(tmp_path), "qa", counts())
    for split in (task.val, task.test):
        edited = {row.contrast for row in split.canonical.rows}
        assert [row.record for row in split.hard_negatives.rows] == [
            row.record for row in split.canonical.rows
        ]
        for row in split.hard_negatives.rows:
            assert row.target.startswith(" Tern ")
            assert row.target not in edited


def test_the_same_seed_chooses_the_same_and_more_edits_change_no_edit(tmp_path: Path) -> None:
    folder = write_questions(tmp_path)
    first = import_serac_qa(folder, "qa", counts())
    assert import_serac_qa(folder, "qa", counts()) == first
    assert import_serac_qa(folder, "qa", counts(seed=1)).test != first.test
    more = import_serac_qa(folder, "qa", counts(test=5, val=3, train=4))
    assert more.test.canonical.rows[:4] == first.test.canonical.rows
    assert more.test.ood.rows[: len(first.test.ood)] == first.test.ood.rows


def test_rows_that_cannot_be_edits_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = [
        question_record(50, alternatives=[]),
        question_record(51, alternatives=["Tern 51", " "]),
        question_record(52, filtered_rephrases=[]),
        question_record(53, filtered_rephrases=["Which ship did Captain 053 sail?"]),
        question_record(54, input="What sex or gender is Captain 054?"),
        question_record(55, output=[{"provenance": []}]),
        question_record(400),
        question_record(400),
    ]
    folder = write_questions(tmp_path, test=bad)
    task = import_serac_qa(folder, "qa", counts(test=11))
    assert {int(row.record or "") for row in task.test.canonical.rows} <= set(range(1, 13))
    for reason in (
        "2 had no other answer",
        "2 had no rephrase",
        "1 were about sex or gender",
        "1 had no answer",
        "2 repeated an earlier question",
    ):
        assert reason in task.description


def test_no_question_is_edited_in_two_splits(tmp_path: Path) -> None:
    again = [question_record(n) for n in range(400, 412)]
    task = import_serac_qa(write_questions(tmp_path, dev=again), "qa", counts(test=10, val=10))
    assert "10 stood in another split too" in task.description
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_without_training_edits_no_training_file_is_needed(tmp_path: Path) -> None:
    folder = write_questions(tmp_path)
    (folder / FILE.format("train")).unlink()
    with pytest.raises(TaskError, match=r"missing: structured_zeroshot-train.*Google Drive"):
        import_serac_qa(folder, "qa", counts())
    assert import_serac_qa(folder, "qa", counts(train=0)).train is None


def test_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test split needs more than 12 records .* there are 12"):
        import_serac_qa(write_questions(tmp_path), "qa", counts(test=12))


def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    broken = {key: value for key, value in question_record(9).items() if key != "alternatives"}
    with pytest.raises(TaskError, match=r"structured_zeroshot-dev.*jsonl:13: alternatives: Field"):
        import_serac_qa(write_questions(tmp_path, dev=[broken]), "qa", counts())


def test_hard_questions_are_implied_or_ask_for_true_or_false(tmp_path: Path) -> None:
    folder = write_questions(tmp_path, count=60)
    task = import_serac_qa_hard(folder, "hard", counts(test=20))
    said = set()
    for edit in task.test.canonical.rows:
        number = 399 + int(edit.record or "")
        new = edit.target.strip()
        third = ({f"Heron {number}", f"Egret {number}"} - {new}).pop()
        _, _, implied, asked = (row for row in task.test.ood.rows if row.record == edit.record)
        assert implied == Example(
            prompt=f"Who sailed {new}?", target=f" Captain {number:03}", record=edit.record
        )
        told = new if asked.target == " True" else third
        assert asked.prompt.endswith(f"Captain {number:03} sailed {told}-{told}")
        assert asked.prompt.lower().count("true") == asked.prompt.lower().count("false") == 1
        said.add((asked.target, asked.contrast))
    assert said == {(" True", " False"), (" False", " True")}
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_hard_negatives_are_near_but_not_nearest(tmp_path: Path) -> None:
    folder = tmp_path / "zsre"
    folder.mkdir()
    for part, start in STARTS.items():
        near = [f"Which ship did Captain {n:03} sail?" for n in range(start, start + 120)]
        far = [f"Where is bridge number {n}?" for n in range(start, start + 120)]
        rows = [
            question_record(n, input=text, filtered_rephrases=[f"{text} Say."])
            for n, text in enumerate((*near, *far))
        ]
        write_rows(folder / FILE.format(part), rows)
        (folder / f"impl_{part}.json").write_text("[]")
        (folder / f"zsre_yn_{part}.txt").write_text("")
    task = import_serac_qa_hard(tmp_path, "hard", counts(test=20))
    easy, hard = task.test.hard_negatives.rows[::2], task.test.hard_negatives.rows[1::2]
    edits = task.test.canonical.rows
    assert [row.record for row in hard] == [row.record for row in edits]

    def alike(rows: tuple[Example, ...]) -> int:
        pairs = zip(edits, rows, strict=True)
        return sum(("ship" in edit.prompt) == ("ship" in row.prompt) for edit, row in pairs)

    # At least 25 of one kind are left out, and of the other some come among the nearest 100.
    assert alike(hard) > alike(easy)
    assert alike(hard) >= 15


def test_hard_negatives_need_more_rows_than_are_too_near(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the 25 rows nearest"):
        import_serac_qa_hard(write_questions(tmp_path), "hard", counts())


def test_a_question_that_names_no_answer_implies_nothing(tmp_path: Path) -> None:
    folder = write_questions(tmp_path, count=60)
    (folder / "impl_test.json").write_text(json.dumps([[["Who was it?", "Captain", "nec"]]]))
    (folder / "zsre_yn_test.txt").write_text("A captain sailed.\n")
    task = import_serac_qa_hard(folder, "hard", counts())
    assert len(task.test.ood) == 2 * len(task.test.canonical)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("impl_dev.json", "[[[1, 2]]]", r"impl_dev\.json: record 1: "),
        ("impl_dev.json", '[[],\n[["a", "b"]]]', r"impl_dev\.json: record 2: "),
        ("impl_dev.json", "[[]\n[]]", r"impl_dev\.json:2: not valid JSON"),
        ("impl_dev.json", json.dumps([[]] * 61), r"impl_dev\.json: must have one entry .* 61 for"),
        ("zsre_yn_dev.txt", "x\n" * 61, r"zsre_yn_dev\.txt: must have one entry .* 61 for 60"),
    ],
)
def test_what_is_wrong_beside_the_questions_is_named(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    folder = write_questions(tmp_path, count=60)
    (folder / name).write_text(content)
    with pytest.raises(TaskError, match=said):
        import_serac_qa_hard(folder, "hard", counts())
