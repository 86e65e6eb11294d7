"""VitaminC's evidence and claims become edits with claims in and out of their scope."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.published_rows import claim_record, write_rows
from tuner.editing.task import Example, SuccessCriterion
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import ConfigError, TaskError
from tuner.importers.scoped_edits import EditCounts
from tuner.importers.serac.fact_checking import import_serac_fact_checking

STARTS = {"train": 0, "dev": 200, "test": 400}
COUNTS = EditCounts(train=4, val=4, test=4)


def write_claims(folder: Path, count: int = 12, **further: list[dict[str, Any]]) -> Path:
    """Write for each page a supported, a refuted and an open claim of the same evidence."""
    for part, start in STARTS.items():
        labels = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
        rows = [claim_record(n, label) for n in range(start, start + count) for label in labels]
        write_rows(folder / f"{part}.jsonl", rows + further.get(part, []))
    return folder


def test_evidence_is_edited_in_and_claims_follow_or_are_left_open(tmp_path: Path) -> None:
    task = import_serac_fact_checking(write_claims(tmp_path), "fc", COUNTS)
    assert task.success is SuccessCriterion.LIKELIER
    for place, edit in enumerate(task.test.canonical.rows):
        number = 400 + (int(edit.record or "") - 1) // 3
        assert edit == Example(
            prompt=f"True or False: {claim_record(number)['evidence']}",
            target=" True",
            contrast=" False",
            record=edit.record,
        )
        (inside,) = (row for row in task.test.ood.rows if row.record == edit.record)
        supported = f"Harbour {number:03} supports" in inside.prompt
        assert inside.target == (" True" if supported else " False")
        left_open, elsewhere = task.test.hard_negatives.rows[2 * place : 2 * place + 2]
        assert f"Harbour {number:03} not enough info" in left_open.prompt
        assert f"Harbour {number:03}" not in elsewhere.prompt
        assert {left_open.record, elsewhere.record} == {edit.record}
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_labels_are_balanced_except_in_the_test_split(tmp_path: Path) -> None:
    refuted = {
        part: [claim_record(n, "REFUTES") for n in range(start + 12, start + 60)]
        for part, start in STARTS.items()
    }
    task = import_serac_fact_checking(
        write_claims(tmp_path, **refuted), "fc", EditCounts(train=8, val=8, test=20)
    )
    assert task.train is not None
    for split in (task.train, task.val):
        assert sorted(row.target for row in split.ood.rows) == [" False"] * 4 + [" True"] * 4
    assert [row.target for row in task.test.ood.rows].count(" False") > 12


def test_each_page_is_edited_once_and_no_claim_out_of_scope_is_about_one(tmp_path: Path) -> None:
    task = import_serac_fact_checking(
        write_claims(tmp_path), "fc", EditCounts(train=8, val=8, test=11)
    )
    prompts = [row.prompt for row in task.test.canonical.rows]
    assert len(set(prompts)) == 11
    edited = {prompt.split(" was built")[0][-3:] for prompt in prompts}
    easy = {row.prompt.split("Harbour ")[1][:3] for row in task.test.hard_negatives.rows[1::2]}
    assert len(easy) == 1
    assert not easy & edited


def test_a_page_whose_name_stands_in_anothers_is_no_other_page(tmp_path: Path) -> None:
    folder = write_claims(tmp_path)
    rows = [claim_record(1, page="Harbour"), claim_record(2)]
    write_rows(folder / "test.jsonl", rows)
    with pytest.raises(ConfigError, match="no claim is about a page other than 'Harbour"):
        import_serac_fact_checking(folder, "fc", EditCounts(train=2, val=2, test=1))


def test_short_evidence_and_synthetic_revisions_are_left_out(tmp_path: Path) -> None:
    further = [
        claim_record(490, revision_type="synthetic"),
        claim_record(491, evidence="Ten words are one too few for the published code"),
        claim_record(492, evidence="Eleven words are just enough for the rows of this test"),
    ]
    task = import_serac_fact_checking(
        write_claims(tmp_path, test=further), "fc", EditCounts(train=4, val=4, test=12)
    )
    text = task.model_dump_json()
    assert "Harbour 490" not in text
    assert "Harbour 491" not in text
    assert "Harbour 492" in text
    assert "1 were of no real revision; 1 had short evidence" in task.description


def test_a_page_of_the_test_split_is_not_trained_on(tmp_path: Path) -> None:
    again = [claim_record(n) for n in range(400, 412)]
    folder = write_claims(tmp_path, count=8, train=again)
    task = import_serac_fact_checking(folder, "fc", EditCounts(train=4, val=4, test=7))
    assert task.train is not None
    tested = {row.prompt for row in task.test.canonical.rows}
    assert not tested & {row.prompt for row in task.train.canonical.rows}


def test_the_same_seed_chooses_the_same(tmp_path: Path) -> None:
    folder = write_claims(tmp_path)
    one, again = (import_serac_fact_checking(folder, "fc", COUNTS) for _ in range(2))
    other = import_serac_fact_checking(folder, "fc", COUNTS.model_copy(update={"seed": 1}))
    assert one == again
    assert one.test != other.test


def test_an_unknown_label_is_named_by_file_and_line(tmp_path: Path) -> None:
    folder = write_claims(tmp_path, dev=[claim_record(260, "MAYBE")])
    with pytest.raises(TaskError, match=r"dev\.jsonl:37: label: .*Got 'MAYBE'"):
        import_serac_fact_checking(folder, "fc", COUNTS)


def test_too_few_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"more than 12 records .* there are 12"):
        import_serac_fact_checking(write_claims(tmp_path), "fc", EditCounts(test=12))
