"""Edits to train on are joined by record, checked, and parted by record."""

import pytest
import torch

from tuner.editing.task import Example, ExampleSet, Split
from tuner.editors._training.training_edits import (
    check_training,
    hold_out,
    split_hash,
    training_edits,
)
from tuner.errors import ConfigError


def _without(split: Split, part: str) -> Split:
    rows = getattr(split, part)
    return split.model_copy(update={part: ExampleSet(loss=rows.loss, rows=())})


def test_rows_are_joined_to_their_edit_by_record(training: Split) -> None:
    edits = training_edits(training)
    assert [edit.record for edit in edits] == [row.record for row in training.canonical.rows]
    for edit in edits:
        assert edit.inside[0] == edit.edit
        assert len(edit.in_scope) == 2
        assert len(edit.out_of_scope) == 1
        assert {row.record for row in (*edit.inside, *edit.out_of_scope)} == {edit.record}
        assert edit.prompts_inside == {row.prompt for row in edit.inside}


def test_edits_without_rows_in_scope_are_left_out(training: Split) -> None:
    lonely = Example(prompt="The capital of Chile is", target=" Lome", record="Chile")
    nameless = Example(prompt="The capital of Togo is", target=" Lome")
    canonical = training.canonical.model_copy(
        update={"rows": (lonely, nameless, *training.canonical.rows)}
    )
    more = training.model_copy(update={"canonical": canonical})
    assert training_edits(more) == training_edits(training)
    assert split_hash(more) != split_hash(training)


def test_what_cannot_be_learned_from_is_refused(training: Split) -> None:
    assert check_training(training) is training
    with pytest.raises(ConfigError, match="the task has none"):
        check_training(None)
    with pytest.raises(ConfigError, match="0 of them with rows in scope"):
        check_training(_without(training, "ood"))
    narrow = _without(training, "hard_negatives")
    with pytest.raises(ConfigError, match="0 of those with rows out of it"):
        check_training(narrow)
    assert check_training(narrow, without_outside=True) is narrow


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.01, 1), (0.5, 3), (0.99, 5)])
def test_the_sides_share_no_record(training: Split, share: float, held: int) -> None:
    edits = [edit for edit in training_edits(training) for _ in range(2)]
    some, away = hold_out(edits, share, torch.Generator().manual_seed(0))
    records = [{edit.record for edit in side} for side in (some, away)]
    assert not records[0] & records[1]
    assert (len(records[0]), len(records[1])) == (6 - held, held)
    assert len(some) + len(away) == len(edits)
