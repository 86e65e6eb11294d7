"""Losses of continuations: by position, whatever the batch."""

import pytest
import torch

from tuner.editing.likelihood import (
    Continuation,
    block_losses,
    combine_losses,
    continuation_losses,
    encode_continuation,
    encode_example,
    in_length_order,
    success_losses,
    training_losses,
)
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, LossKind
from tuner.errors import TaskError


def _by_hand(model: LanguageModel, row: Continuation) -> float:
    logits = model.network(input_ids=torch.tensor([row.ids])).logits[0]
    log_probs = logits.log_softmax(-1)
    return -sum(
        float(log_probs[position - 1, row.ids[position]])
        for position in range(row.start, len(row.ids))
    )


@torch.no_grad()
def test_batched_losses_equal_single_ones(model: LanguageModel) -> None:
    rows = [
        encode_continuation(model, "The capital of Togo is", " Lome"),
        encode_continuation(model, "is", " Port Louis and a big town"),
        encode_continuation(model, "The capital city of Mauritius is a big", " town"),
    ]
    together = continuation_losses(model.network, rows, model.end_id)
    expected = torch.tensor([_by_hand(model, row) for row in rows])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_target_may_hold_the_padding_token(neox: LanguageModel) -> None:
    prompt = encode_continuation(neox, "The capital of Togo is", " Lome")
    row = Continuation(ids=(*prompt.ids, neox.end_id), start=prompt.start)
    found = continuation_losses(neox.network, [row, prompt], neox.end_id)
    assert float(found[0]) == pytest.approx(_by_hand(neox, row), rel=1e-5)


@torch.no_grad()
def test_training_takes_means_and_success_takes_sums(neox: LanguageModel) -> None:
    row = encode_example(neox, Example(prompt="A town is", target=" Port Louis", contrast=" big"))
    assert row.contrast is not None
    target, contrast = _by_hand(neox, row.target), _by_hand(neox, row.contrast)
    mean = target / row.target.target_length - contrast / row.contrast.target_length
    for kind, train, judge in (
        (LossKind.LIKELIHOOD, target / row.target.target_length, target),
        (LossKind.SUPPRESS, -target / row.target.target_length, -target),
        (LossKind.PREFER, mean, target - contrast),
        (LossKind.BALANCE, abs(mean), abs(target - contrast)),
    ):
        trained = training_losses(neox.network, kind, [row], neox.end_id)
        judged = success_losses(neox.network, kind, [row], neox.end_id)
        assert float(trained) == pytest.approx(train, rel=1e-4, abs=1e-5)
        assert float(judged) == pytest.approx(judge, rel=1e-4, abs=1e-5)


def test_a_loss_with_two_sides_needs_both() -> None:
    with pytest.raises(TaskError, match="needs a contrast"):
        combine_losses(LossKind.PREFER, torch.ones(1), None)


@torch.no_grad()
def test_block_loss_is_the_sum_over_predicted_tokens(model: LanguageModel) -> None:
    blocks = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
    expected = [_by_hand(model, Continuation(tuple(block.tolist()), 1)) for block in blocks]
    found = block_losses(model.network, blocks)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-4
    )


def test_too_long_and_empty_targets_are_refused(neox: LanguageModel) -> None:
    with pytest.raises(TaskError, match="exceed the model's context"):
        encode_continuation(neox, "town " * 200, " big")
    with pytest.raises(TaskError, match="has no token"):
        encode_continuation(neox, "A town is", "")


def test_length_order_covers_every_row_once() -> None:
    batches = list(in_length_order([3, 9, 1, 9, 5], 2))
    assert batches == [[1, 3], [4, 0], [2]]
