"""CounterFact's published fields become rows; what cannot be used is counted, not passed on."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.published_rows import counterfact_record, write_list
from tuner.editing.task import Example, SuccessCriterion, Task
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import ConfigError, TaskError
from tuner.importers.counterfact import import_counterfact
from tuner.importers.selection import FactSelection


def imported(path: Path, records: list[dict[str, Any]], **selection: int) -> Task:
    return import_counterfact(
        write_list(path / "counterfact.json", records), "cf", FactSelection(**selection)
    )


def test_a_record_becomes_its_rows(tmp_path: Path) -> None:
    task = imported(tmp_path, [counterfact_record(n) for n in range(10)], val=1, test=1)
    edit = task.val.canonical.rows[0]
    number = str(edit.record)
    harbour = f"Harbour {int(number):02}"
    true = f" Brook {number}"
    assert edit == Example(
        prompt=f"{harbour} lies on the river",
        target=" Lomond",
        contrast=true,
        subject=harbour,
        record=number,
    )
    assert [row.prompt for row in task.val.ood.rows] == [
        f"It rained. {harbour} stands beside",
        f"The waters near {harbour} are those of",
    ]
    assert {(row.target, row.contrast, row.subject) for row in task.val.ood.rows} == {
        (" Lomond", true, harbour)
    }
    assert task.val.neighbours == (
        Example(
            prompt=f"Mill {number} lies on the river",
            target=true,
            contrast=" Lomond",
            record=number,
        ),
        Example(prompt=f"Ferry {number} crosses", target=true, contrast=" Lomond", record=number),
    )
    assert [row.prompt for row in task.val.generations] == [
        f"{harbour} is known for",
        f"{harbour} trades in",
    ]
    assert task.success is SuccessCriterion.LIKELIER
    assert len(task.val.facts) == 8
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_the_same_seed_chooses_the_same_and_another_does_not(tmp_path: Path) -> None:
    records = [counterfact_record(n) for n in range(40)]
    one, again, other = (
        imported(tmp_path, records, val=5, test=5, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again
    assert one.val.canonical != other.val.canonical


def test_splits_and_facts_share_no_subject(tmp_path: Path) -> None:
    records = [
        counterfact_record(n, f"Harbour {n // 3:02}", relation_id=f"P{n % 3}") for n in range(60)
    ]
    task = imported(tmp_path, records, val=7, test=8)
    val, test, facts = (
        {row.subject for row in rows}
        for rows in (task.val.canonical.rows, task.test.canonical.rows, task.val.facts)
    )
    assert (len(task.val.canonical), len(task.test.canonical)) == (7, 8)
    assert not val & test
    assert not (val | test) & facts
    assert facts


def test_a_judged_fact_is_never_in_the_pool(tmp_path: Path) -> None:
    """Harbour 01's true object is stated of it by a neighbour of every other record."""
    records = [counterfact_record(n) for n in range(30)]
    for record in records:
        record["requested_rewrite"]["target_true"] = {"str": "Brook", "id": "Q2"}
        record["neighborhood_prompts"] = ["Harbour 01 and others lie on the river"]
    for seed in range(5):
        task = imported(tmp_path, records, val=4, test=4, seed=seed)
        assert "Harbour 01" not in {row.subject for row in task.val.facts}
        assert len(task.val.facts) >= 20


def test_conflicts_and_unusable_records_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [counterfact_record(n) for n in range(8)]
    bad = [
        counterfact_record(50, "Harbour 00", target_new={"str": "Tay", "id": "Q3"}),
        counterfact_record(51, "Harbour 00"),
        counterfact_record(52, prompt="The river of a harbour is"),
        counterfact_record(53, prompt="{} and {} lie on the river"),
        counterfact_record(54, target_new={"str": " ", "id": ""}),
        counterfact_record(55, target_new={"str": "Brook 55", "id": "Q65"}),
        counterfact_record(56, subject="Pier", prompt="Pier {} lies on the river"),
        {**counterfact_record(57), "paraphrase_prompts": []},
    ]
    task = imported(tmp_path, good + bad, val=4, test=4)
    used = {row.record for half in (task.val, task.test) for row in half.canonical.rows}
    assert used == {str(n) for n in range(8)}
    for reason in (
        "from 16 records: 4 edits for validation, 4 for test",
        "1 conflicted with an earlier edit",
        "1 repeated an earlier edit",
        "2 had no single subject slot",
        "1 had an empty object",
        "1 left the object as it is",
        "1 named the subject twice",
        "1 had no paraphrase",
    ):
        assert reason in task.description


def test_too_few_records_are_refused_with_the_reasons(tmp_path: Path) -> None:
    records = [counterfact_record(n) for n in range(5)] + [counterfact_record(9, prompt="none")]
    with pytest.raises(ConfigError, match=r"5 usable records of 5 subjects; 1 had no single"):
        imported(tmp_path, records, val=4, test=4)
    with pytest.raises(ConfigError, match="0 usable records"):
        imported(tmp_path, [])


def test_without_sizes_each_split_gets_two_fifths(tmp_path: Path) -> None:
    task = imported(tmp_path, [counterfact_record(n) for n in range(20)])
    assert len(task.val.canonical) == len(task.test.canonical) == 8
    assert len(task.val.facts) == 4


def test_a_malformed_record_is_named(tmp_path: Path) -> None:
    records = [counterfact_record(0), counterfact_record(1)]
    del records[1]["requested_rewrite"]["target_true"]
    with pytest.raises(TaskError, match=r"counterfact.json: record 2: requested_rewrite.target_tr"):
        imported(tmp_path, records)


def test_snippets_become_references_once_per_record(tmp_path: Path) -> None:
    records = [counterfact_record(n) for n in range(10)]
    snippets = write_list(
        tmp_path / "attribute_snippets.json",
        [
            {"relation_id": "P206", "target_id": "Q1", "samples": [{"name": "x", "text": "A."}]},
            {"relation_id": "P206", "target_id": "Q9", "samples": [{"name": "x", "text": "B."}]},
            {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x", "text": "C."}]},
        ],
    )
    path = write_list(tmp_path / "counterfact.json", records)
    task = import_counterfact(path, "cf", FactSelection(val=2, test=2), snippets)
    for split in (task.val, task.test):
        assert [row.references for row in split.generations] == [("A.",), ()] * 2


def test_blanks_around_a_subject_and_repeated_numbers_do_no_harm(tmp_path: Path) -> None:
    records = [counterfact_record(n) for n in range(10)]
    for record in records:
        rewrite = record["requested_rewrite"]
        rewrite["subject"] = f"{rewrite['subject']} "
        rewrite["prompt"] = "Rivers beside {}"
    records[7]["case_id"] = records[6]["case_id"]
    task = imported(tmp_path, records, val=1, test=1)
    assert "repeated a case_id" in task.description
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_blanks_around_a_subject_cost_neither_the_subject_nor_the_facts(tmp_path: Path) -> None:
    records = [
        counterfact_record(
            n, f"Harbour {n:02} ", prompt="The river is near {}", target_true={"str": "Lomond"}
        )
        | {"neighborhood_prompts": []}
        for n in range(10)
    ]
    for n, record in enumerate(records):
        record["requested_rewrite"]["target_new"] = {"str": f"Brook {n}"}
    task = imported(tmp_path, records, val=1, test=1)
    edit = task.val.canonical.rows[0]
    assert edit.subject == f"Harbour {int(edit.record or 0):02}"
    assert edit.prompt.endswith(edit.subject)
    assert len(task.val.facts) == 8


def test_an_imported_task_is_one_that_loads(tmp_path: Path) -> None:
    # Two subjects, one paraphrase: whichever splits they fall into, it may stand in one alone.
    records = [counterfact_record(n) for n in range(6)]
    for record in records:
        record["paraphrase_prompts"] = ["It lies on"]
    with pytest.raises(ConfigError, match="asked the same as one of another split"):
        imported(tmp_path, records, val=1, test=1)
    records += [counterfact_record(n) for n in range(6, 12)]
    task = imported(tmp_path, records, val=3, test=3)
    save_task(task, tmp_path / "task")
    assert load_task(tmp_path / "task") == task


def test_half_a_surrogate_pair_is_refused_by_record(tmp_path: Path) -> None:
    records = [counterfact_record(n) for n in range(3)]
    records[1]["requested_rewrite"]["subject"] = "\ud800"
    with pytest.raises(TaskError, match=r"counterfact\.json: record 2: .*surrogate"):
        imported(tmp_path, records)
