"""The two fact tasks of the built-in world: reproducible, well-formed, and fair to judge by."""

from collections import Counter, defaultdict

import pytest

from tests.support.clone import ROOT
from tuner.editing.task import Example, Split, SuccessCriterion, Task
from tuner.editing.task_folder import load_task
from tuner.world.facts import CARDS, fact_task_files

DATASETS = ROOT / "datasets"
EDITS = {"counterfact_world": 30, "zsre_world": 60}
PARAPHRASES = 2
NEIGHBOURS = {"counterfact_world": 4, "zsre_world": 2}


@pytest.fixture(scope="module", params=CARDS)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(str(request.param))


def judged(split: Split) -> tuple[Example, ...]:
    return (*split.canonical.rows, *split.ood.rows, *split.neighbours)


def test_files_on_disk_are_what_the_generator_writes() -> None:
    files = fact_task_files()
    for path, content in files.items():
        assert (DATASETS / path).read_text() == content, path
        assert len(content) < 1_000_000
    on_disk = {
        str(path.relative_to(DATASETS))
        for name in CARDS
        for path in (DATASETS / name).rglob("*")
        if path.is_file()
    }
    assert on_disk == set(files)


@pytest.mark.parametrize("side", ["val", "test"])
def test_every_record_is_whole(task: Task, side: str) -> None:
    split: Split = getattr(task, side)
    records = [row.record for row in split.canonical.rows]
    assert len(set(records)) == len(records) == EDITS[task.name]
    for rows, count in ((split.ood.rows, PARAPHRASES), (split.neighbours, NEIGHBOURS[task.name])):
        assert Counter(row.record for row in rows) == dict.fromkeys(records, count)
    targets = {row.record: (row.target, row.contrast) for row in split.canonical.rows}
    for row in split.ood.rows:
        assert (row.target, row.contrast) == targets[row.record]


def test_rows_are_well_formed(task: Task) -> None:
    for split in (task.val, task.test):
        for row in (*judged(split), *split.facts):
            assert row.target.startswith(" ")
            assert row.prompt == row.prompt.strip()
            assert row.subject is not None
            assert row.prompt.count(row.subject) == 1, row
            if task.success is SuccessCriterion.LIKELIER and row not in split.facts:
                assert row.contrast is not None
                assert row.contrast.startswith(" ")
                assert row.contrast != row.target


def test_no_subject_is_on_both_sides_and_no_fact_is_judged(task: Task) -> None:
    sides = [{row.subject for row in judged(split)} for split in (task.val, task.test)]
    assert not sides[0] & sides[1]
    prompts = {row.prompt for split in (task.val, task.test) for row in judged(split)}
    for split in (task.val, task.test):
        assert len(split.facts) > EDITS[task.name]
        assert not prompts & {row.prompt for row in split.facts}


def test_neighbours_are_never_edited_and_share_the_true_object_where_there_are_such() -> None:
    task = load_task("counterfact_world")
    for split in (task.val, task.test):
        edits = {row.record: row for row in split.canonical.rows}
        edited = {row.subject for row in split.canonical.rows}
        shared: dict[str, list[bool]] = defaultdict(list)
        for row in split.neighbours:
            assert row.record is not None
            edit = edits[row.record]
            assert row.subject not in edited
            assert row.contrast == edit.target
            shared[row.record.partition(":")[0]].append(row.target == edit.contrast)
        # A capital has one country; a kind has many inventions.
        assert not any(shared["capital"])
        assert sum(shared["kind"]) / len(shared["kind"]) > 0.7
        assert sum(shared["industry"]) / len(shared["industry"]) > 0.5
        assert all(any(shared["country"][i : i + 4]) for i in range(0, len(shared["country"]), 4))


def test_generations_have_references_about_the_new_object() -> None:
    task = load_task("counterfact_world")
    for split in (task.val, task.test):
        edits = {row.record: row for row in split.canonical.rows}
        assert Counter(row.record for row in split.generations) == dict.fromkeys(edits, 3)
        for row in split.generations:
            assert row.prompt == row.prompt.strip()
            assert str(edits[row.record].subject) in row.prompt
            assert row.references
            for text in row.references:
                assert text.endswith(f"{edits[row.record].target}.")
                assert str(edits[row.record].subject) not in text
