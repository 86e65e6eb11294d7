"""zsRE's published fields become rows; which answer is written is chosen and said."""

from pathlib import Path
from typing import Any

from tests.support.published_rows import write_list, zsre_record
from tuner.editing.task import Example, SuccessCriterion, Task
from tuner.editing.task_folder import load_task, save_task
from tuner.importers.selection import FactSelection
from tuner.importers.zsre import ZsreTarget, import_zsre


def imported(
    path: Path, records: list[dict[str, Any]], target: ZsreTarget = ZsreTarget.ANSWER, size: int = 2
) -> Task:
    written = write_list(path / "zsre_mend_eval.json", records)
    return import_zsre(written, "zsre", FactSelection(val=size, test=size), target)


def test_a_record_becomes_its_rows(tmp_path: Path) -> None:
    task = imported(tmp_path, [zsre_record(n) for n in range(10)])
    edit = task.val.canonical.rows[0]
    number = str(edit.record)
    captain = f"Captain {int(number):02}"
    assert edit == Example(
        prompt=f"Which ship did {captain} sail?",
        target=f" Tern {number}",
        subject=captain,
        record=number,
    )
    assert task.val.ood.rows[0].prompt == f"What was the name of {captain}'s ship?"
    assert task.val.neighbours[0] == Example(
        prompt=f"nq question: who painted the harbour {number}?",
        target=f" Painter {number}",
        record=number,
    )
    assert task.success is SuccessCriterion.TOKENS
    assert len(task.val.facts) == 6
    assert "answers[0]" in task.description
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_alt_is_written_where_asked_for_and_the_pool_stays_true(tmp_path: Path) -> None:
    records = [zsre_record(n) for n in range(10)]
    records.append(zsre_record(10, alt=""))
    records.append(zsre_record(11, alt="Tern 11"))
    task = imported(tmp_path, records, ZsreTarget.ALT)
    for row in (*task.val.canonical.rows, *task.val.ood.rows):
        assert (row.target, row.contrast) == (" Heron", f" Tern {row.record}")
    assert {row.target[:6] for row in task.val.facts} == {" Tern "}
    assert "alt is to be given" in task.description
    assert "1 had no alt" in task.description
    assert "1 left the object as it is" in task.description


def test_a_subject_must_stand_once_in_the_question_and_may_miss_in_the_paraphrase(
    tmp_path: Path,
) -> None:
    records = [zsre_record(n, rephrase="Which ship was it?") for n in range(6)]
    records.append(zsre_record(6, src="Did Captain 06 meet Captain 06?"))
    records.append(zsre_record(7, src="Which ship was it?"))
    records.append(zsre_record(8, answers=[]))
    records.append(zsre_record(9, loc="who painted it"))
    task = imported(tmp_path, records, size=3)
    assert {row.subject for row in task.val.ood.rows} == {None}
    assert "2 had no single subject slot" in task.description
    assert "1 had no answer" in task.description
    assert "1 had no loc question" in task.description


def test_edits_that_ask_the_same_of_the_same_subject_are_kept_once(tmp_path: Path) -> None:
    records = [zsre_record(n) for n in range(4)]
    records.append(zsre_record(7, "Captain 00"))
    task = imported(tmp_path, records)
    assert "1 conflicted with an earlier edit" in task.description
