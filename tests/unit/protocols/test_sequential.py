"""Streams: edits one after another, measured after each, broken off and gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.editing.corpus import GeneralText
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, Task
from tuner.editors import find_editor
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Budget
from tuner.files.cache import Cache
from tuner.protocols.sequential import SequentialEntry, SequentialRecord, run_sequence
from tuner.report import write_retention
from tuner.trial.evaluator import Evaluator

SETTINGS: dict[str, dict[str, Any]] = {
    "full_finetuning": {"learning_rate": 1e-2, "epochs": 20, "kl_weight": 0.0},
    "look_up": {"threshold": 0.01},
}


@pytest.fixture(params=sorted(SETTINGS))
def editor(request: pytest.FixtureRequest) -> Editor:
    return find_editor(str(request.param)).model_validate(SETTINGS[str(request.param)])


MakeEvaluator = Callable[..., Evaluator]


@pytest.fixture
def evaluator_of(
    neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path
) -> MakeEvaluator:
    """Makes evaluators of a task whose rows name their records, with other edits where asked."""

    def named(rows: ExampleSet) -> ExampleSet:
        return rows.model_copy(
            update={
                "rows": tuple(row.model_copy(update={"record": row.subject}) for row in rows.rows)
            }
        )

    def make(rows: tuple[Example, ...] = (), **more: Any) -> Evaluator:
        canonical = named(task.val.canonical)
        if rows:
            canonical = canonical.model_copy(update={"rows": rows})
        val = task.val.model_copy(update={"canonical": canonical, "ood": named(task.val.ood)})
        judged = task.model_copy(update={"val": val, **more})
        budget = Budget(epsilons=(1e-1,))
        return Evaluator(neox, judged, budget, general, cache=Cache(tmp_path / "cache"))

    return make


@pytest.fixture
def evaluator(evaluator_of: MakeEvaluator) -> Evaluator:
    return evaluator_of()


def _without_times(record: SequentialRecord) -> list[SequentialEntry]:
    untimed = {"seconds": 0.0, "measuring_seconds": 0.0}
    return [entry.model_copy(update=untimed) for entry in record.entries]


def test_every_edit_is_made_and_measured(editor: Editor, evaluator: Evaluator) -> None:
    seen: list[SequentialEntry] = []
    record = run_sequence(evaluator, editor, seed=0, on_entry=seen.append)
    assert tuple(seen) == record.entries == record.measured
    assert [entry.number for entry in seen] == [1, 2, 3]
    assert all(entry.applied and entry.success == 1 for entry in seen)
    # After the first edit there is nothing to forget.
    assert seen[0].retention == seen[0].success
    assert all(entry.deviation is not None for entry in seen)
    evaluator.check_unchanged()


def test_memories_are_made_of_all_edits_in_their_order(evaluator: Evaluator) -> None:
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    last = run_sequence(evaluator, editor, seed=0).entries[-1]
    assert last.retention == 1
    # What is not near a stored prompt stays as it was.
    assert last.unchanged == 1


def test_changes_add_up_to_a_chain_of_batches(evaluator: Evaluator) -> None:
    settings = SETTINGS["full_finetuning"]
    record = run_sequence(
        evaluator, find_editor("full_finetuning").model_validate(settings), seed=3
    )
    chained = find_editor("full_finetuning").model_validate({**settings, "batches": 3})
    rows = evaluator.task.val.canonical
    *_, step = chained.edit(evaluator.model, rows, evaluator.auxiliary, seed=3)
    found = evaluator.meter.measure(step.delta, evaluator.budget.epsilons, sure=False)
    assert record.entries[-1].deviation == found


def test_a_stream_that_was_broken_off_goes_on_as_if_it_had_not_been(
    editor: Editor, evaluator: Evaluator, tmp_path: Path
) -> None:
    whole = run_sequence(evaluator, editor, seed=0, every=2, path=tmp_path / "whole.jsonl")
    assert [entry.number for entry in whole.measured] == [2, 3]
    assert SequentialRecord.load(tmp_path / "whole.jsonl") == whole
    # It ended in the middle of the second entry.
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:2], lines[2][:40]]))
    seen: list[SequentialEntry] = []
    again = run_sequence(evaluator, editor, seed=0, every=2, path=broken, on_entry=seen.append)
    assert [entry.number for entry in seen] == [2, 3]
    assert _without_times(again) == _without_times(whole)
    assert SequentialRecord.load(broken) == again


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "an entry is lost": lambda lines: [lines[0], lines[2]],
    "an entry stands twice": lambda lines: [*lines[:2], lines[1]],
    "there are more entries than edits": lambda lines: [*lines, lines[3].replace(b":3,", b":4,")],
    "a number is not one": lambda lines: [lines[0], lines[1].replace(b":1,", b":null,")],
    "an entry is something else": lambda lines: [lines[0], b"[]"],
    "an entry is not UTF-8": lambda lines: [lines[0], b"\xff"],
    "an entry holds half of a pair": lambda lines: [
        lines[0],
        lines[1].replace(b'"prompt":"', b'"prompt":"\\ud800'),
    ],
    "an entry is nested": lambda lines: [lines[0], b"[" * 5000],
    "the header is empty": lambda lines: [b"", *lines[1:]],
    "the header is another's": lambda lines: [lines[1]],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_stream_is_told_with_its_line_and_kept(
    evaluator: Evaluator, tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    path = tmp_path / "stream.jsonl"
    run_sequence(evaluator, editor, seed=0, every=3, path=path)
    content = b"".join(line + b"\n" for line in damage(path.read_bytes().splitlines()))
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"stream\.jsonl:\d+"):
        run_sequence(evaluator, editor, seed=0, every=3, path=path)
    assert path.read_bytes() == content


def test_only_a_header_that_was_cut_short_is_written_over(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    path = tmp_path / "stream.jsonl"
    whole = run_sequence(evaluator, editor, seed=0, every=3, path=path)
    for size in (0, 1, 40):
        path.write_bytes(path.read_bytes()[:size])
        again = run_sequence(evaluator, editor, seed=0, every=3, path=path)
        assert _without_times(again) == _without_times(whole)
    path.write_text("notes of mine")
    with pytest.raises(ConfigError, match="holds no sequence"):
        run_sequence(evaluator, editor, seed=0, path=path)
    assert path.read_text() == "notes of mine"


def test_only_what_is_wrong_is_edited_where_asked(task: Task, evaluator_of: MakeEvaluator) -> None:
    rows = task.val.canonical.rows
    evaluator = evaluator_of((*rows, rows[0]))
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    record = run_sequence(evaluator, editor, seed=0, only_wrong=True)
    assert [entry.applied for entry in record.entries] == [True, True, True, False]
    assert record.entries[-1].success == 1


def test_where_the_base_model_is_right_nothing_is_done(evaluator_of: MakeEvaluator) -> None:
    row = Example(prompt="The capital of Togo is", target=" Lome")
    evaluator = evaluator_of((row,), threshold=1e6)
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    (entry,) = run_sequence(evaluator, editor, seed=0, only_wrong=True).entries
    assert not entry.applied
    assert entry.unchanged == 1
    assert entry.deviation is not None
    assert entry.deviation.estimate == 0


def test_what_cannot_be_is_refused(evaluator: Evaluator, tmp_path: Path) -> None:
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    with pytest.raises(ConfigError, match="every"):
        run_sequence(evaluator, editor, seed=0, every=0)
    with pytest.raises(ConfigError, match="Leave `batches` at 1"):
        run_sequence(evaluator, editor.model_copy(update={"batches": 2}), seed=0)
    with pytest.raises(ConfigError, match="learns from other edits"):
        run_sequence(evaluator, find_editor("mend")(), seed=0)
    path = tmp_path / "stream.jsonl"
    run_sequence(evaluator, editor, seed=0, path=path)
    with pytest.raises(ConfigError, match="differs in seed, every"):
        run_sequence(evaluator, editor, seed=1, every=3, path=path)
    # Streams of before are read, but their edits followed one another otherwise.
    old = path.read_text().replace(',"protocol":2', "")
    path.write_text(old)
    assert SequentialRecord.load(path).header.protocol == 1
    with pytest.raises(ConfigError, match="differs in protocol"):
        run_sequence(evaluator, editor, seed=0, path=path)
    assert path.read_text() == old
    path.write_text("something else\n")
    with pytest.raises(ConfigError, match="not a file of a sequence"):
        run_sequence(evaluator, editor, seed=0, path=path)


def test_the_plot_shows_what_was_measured(evaluator: Evaluator, tmp_path: Path) -> None:
    editor = find_editor("look_up").model_validate(SETTINGS["look_up"])
    record = run_sequence(evaluator, editor, seed=0, every=2)
    page = write_retention(record, tmp_path / "plots" / "retention.html").read_text()
    assert "Retention: look_up on capitals" in page
    for name in ("all edits so far (retention)", "their OOD rows", "the edit itself, at once"):
        assert name in page
