"""The four edit problems of the built-in world: reproducible, and what their cards say."""

from collections import Counter

import pytest

from tests.support.clone import ROOT
from tuner.editing.task import Example, Split, SuccessCriterion, Task
from tuner.editing.task_folder import load_task
from tuner.world.opinions import OPINIONS
from tuner.world.problems import AT_ONCE, CARDS, EDITS, problem_files

DATASETS = ROOT / "datasets"
SIDES = ("val", "test", "train")
TRAINED = {"qa_world": 235, "qa_hard_world": 235, "fact_check_world": 235, "dialogue_world": 148}
RULES = {
    "qa_world": SuccessCriterion.SEQUENCE,
    "qa_hard_world": SuccessCriterion.SEQUENCE,
    "fact_check_world": SuccessCriterion.LIKELIER,
    "dialogue_world": SuccessCriterion.SENTIMENT,
}
IN_SCOPE = {"qa_world": 3, "qa_hard_world": 3, "fact_check_world": 4, "dialogue_world": 3}
OUT_OF_SCOPE = {"qa_world": 3, "qa_hard_world": 4, "fact_check_world": 4, "dialogue_world": 3}


@pytest.fixture(scope="module", params=CARDS)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(str(request.param))


def splits(task: Task) -> dict[str, Split]:
    assert task.train is not None
    return {"val": task.val, "test": task.test, "train": task.train}


def rows_of(split: Split) -> tuple[Example, ...]:
    return (*split.canonical.rows, *split.ood.rows, *split.hard_negatives.rows)


def test_files_on_disk_are_what_the_generator_writes() -> None:
    files = problem_files()
    for path, content in files.items():
        assert (DATASETS / path).read_text() == content, path
    on_disk = {
        str(path.relative_to(DATASETS))
        for name in CARDS
        for path in (DATASETS / name).rglob("*")
        if path.is_file()
    }
    assert on_disk == set(files)


def test_pools_are_as_the_cards_say(task: Task) -> None:
    assert task.simultaneous_edits == AT_ONCE == 10
    assert task.success is RULES[task.name]
    for side, split in splits(task).items():
        edits = TRAINED[task.name] if side == "train" else EDITS
        records = [row.record for row in split.canonical.rows]
        assert len(set(records)) == len(records) == edits
        for rows, count in (
            (split.ood.rows, IN_SCOPE[task.name]),
            (split.hard_negatives.rows, OUT_OF_SCOPE[task.name]),
        ):
            assert Counter(row.record for row in rows) == dict.fromkeys(records, count)


def test_rows_are_well_formed(task: Task) -> None:
    for split in splits(task).values():
        for row in rows_of(split):
            assert row.target.startswith(" ")
            assert row.prompt == row.prompt.strip()
            assert row.subject is not None
            assert row.subject in row.prompt
            if row.contrast is not None:
                assert row.contrast.startswith(" ")
                assert row.contrast != row.target


def test_no_question_is_in_scope_and_out_of_it(task: Task) -> None:
    """However many edits are made at once."""
    for split in splits(task).values():
        inside = {row.prompt for row in (*split.canonical.rows, *split.ood.rows)}
        outside = {row.prompt for row in split.hard_negatives.rows}
        assert not inside & outside


def test_sides_share_no_subject_and_no_prompt(task: Task) -> None:
    for kind in ("subject", "prompt"):
        seen = [{getattr(row, kind) for row in rows_of(split)} for split in splits(task).values()]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]


def test_edits_made_at_once_are_of_all_kinds() -> None:
    for name in ("qa_world", "qa_hard_world", "fact_check_world"):
        task = load_task(name)
        for side in ("val", "test"):
            few: Split = getattr(task, side).limited(AT_ONCE)
            kinds = {str(row.record).partition(":")[0] for row in few.canonical.rows}
            assert kinds & {"capital", "town"}
            assert kinds & {"ceo", "chair", "industry", "office"}
            assert kinds & {"home", "effect"}


def test_hard_questions_ask_what_follows_and_what_is_true() -> None:
    task = load_task("qa_hard_world")
    implied = 0
    for split in splits(task).values():
        edits = {row.record: row for row in split.canonical.rows}
        for row in split.ood.rows:
            edit = edits[row.record]
            claimed = edit.target.strip() in row.prompt
            if row.target in (" true", " false"):
                assert claimed == (row.target == " true"), row
            elif claimed:
                # Who has the new object is the subject of the edit.
                assert row.target == f" {edit.subject}"
                implied += 1
        same_subject = sum(
            row.subject == edits[row.record].subject for row in split.hard_negatives.rows
        )
        # By words, other questions about the subject are the nearest.
        assert same_subject / len(edits) > 0.3
    assert implied > 100


def test_claims_are_decided_by_their_evidence() -> None:
    for split in splits(load_task("fact_check_world")).values():
        edits = {row.record: row for row in split.canonical.rows}
        for row in split.ood.rows:
            new = edits[row.record].target.strip(" .")
            assert (new in row.prompt) == (row.target == " true"), row
        assert Counter(row.target for row in split.ood.rows) == {
            " true": 2 * len(edits),
            " false": 2 * len(edits),
        }
        undecided = Counter(
            row.record
            for row in split.hard_negatives.rows
            if row.subject == edits[row.record].subject
        )
        assert set(undecided.values()) == {2}
        assert len(undecided) > 0.5 * len(edits)


def test_opinions_have_the_sentiment_of_their_edit() -> None:
    words = {" positive": OPINIONS[True], " negative": OPINIONS[False]}
    assert not set(words[" positive"]) & set(words[" negative"])
    for split in splits(load_task("dialogue_world")).values():
        edits = {row.record: row for row in split.canonical.rows}
        for row in split.ood.rows:
            edit = edits[row.record]
            assert row.contrast is not None
            assert edit.contrast is not None
            for text, label in ((row.target, edit.target), (row.contrast, edit.contrast)):
                first, second = text.strip(" .").split(" and ")
                assert first in words[label]
                assert second in words[label]
        assert not {row.subject for row in split.hard_negatives.rows} & {
            row.subject for row in split.canonical.rows
        }
