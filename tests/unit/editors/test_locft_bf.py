"""LocFT-BF: one matrix, breadth first, until it is learned."""

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.likelihood import Continuation, continuation_losses, encode_example
from tuner.editing.model import LanguageModel, load_model
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.editing.task_folder import load_task
from tuner.editors.locft_bf import LocftBf


def _steps(
    editor: LocftBf, model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> list[EpochEdit]:
    return list(editor.edit(model, examples, Auxiliary(corpus), seed=0))


def _only(step: EpochEdit) -> tuple[str, torch.Tensor]:
    assert isinstance(step.delta, WeightDelta)
    ((name, change),) = step.delta.changes.items()
    assert isinstance(change, Dense)
    return name, change.values


@pytest.mark.parametrize(("depth", "layer"), [(0.0, 0), (0.3, 1), (0.5, 1), (1.0, 2)])
def test_only_the_down_projection_at_the_depth_changes(
    depth: float, layer: int, model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    (step,) = _steps(LocftBf(depth=depth, epochs=1), model, examples, corpus)
    name, values = _only(step)
    assert name == f"{model.architecture.mlp_modules(layer)[-1]}.weight"
    assert values.abs().max() > 0


def test_the_first_step_is_adams_on_the_mean_over_examples_with_their_ends(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    (step,) = _steps(LocftBf(depth=0.5, learning_rate=1e-3, epochs=1), neox, examples, corpus)
    name, values = _only(step)
    twin = neox.twin(own=[name])
    weight = twin.get_parameter(name).requires_grad_(True)
    losses = []
    for example in examples.rows:
        plain = encode_example(neox, example).target
        ids = (*plain.ids, neox.end_id)
        logits = twin(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        learned = [logits[place - 1, ids[place]] for place in range(plain.start, len(ids))]
        losses.append(-torch.stack(learned).mean())
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), weight)
    # Adam's first step is rate · g / (|g| + 1e-8); where the gradient is tiny, rounding decides.
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(values[clear], -1e-3 * gradient[clear].sign(), rtol=1e-2, atol=1e-6)
    assert step.training_loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_it_ends_once_the_mean_loss_is_low_enough(corpus: Corpus) -> None:
    model = load_model("builtin:neox")
    rows = load_task("country_capital").val.canonical.rows[:3]
    examples = ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)
    assert LocftBf(depth=0.5).stop_below == 1e-2
    settings = {"depth": 0.5, "learning_rate": 1e-2, "epochs": 40, "stop_below": 0.5}
    steps = _steps(LocftBf.model_validate(settings), model, examples, corpus)
    losses = [step.training_loss for step in steps if step.training_loss is not None]
    assert 1 < len(steps) < 40
    assert losses[-1] < 0.5
    assert all(loss >= 0.5 for loss in losses[:-1])
    on = LocftBf.model_validate({**settings, "epochs": len(steps) + 2, "stop_below": None})
    further = _steps(on, model, examples, corpus)
    assert len(further) == len(steps) + 2
    assert torch.equal(_only(further[len(steps) - 1])[1], _only(steps[-1])[1])


def test_a_batch_that_is_learned_already_makes_no_step(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    rows = [encode_example(neox, row).target for row in examples.rows]
    means = []
    for row in rows:
        whole = Continuation((*row.ids, neox.end_id), row.start)
        losses = continuation_losses(neox.network, [whole], neox.end_id)
        means.append(float(losses[0]) / whole.target_length)
    low, high = min(means), max(means)
    editor = LocftBf(depth=0.5, epochs=1, batch_size=1, stop_below=None)
    for limit, moves in ((low / 2, True), (high * 2, False)):
        (step,) = _steps(editor.model_copy(update={"skip_below": limit}), neox, examples, corpus)
        assert bool(_only(step)[1].any()) == moves
    # One batch of all: its mean decides, as published.
    mean = sum(means) / len(means)
    together = LocftBf(depth=0.5, epochs=1, stop_below=None)
    for limit, moves in ((mean * 0.99, True), (mean * 1.01, False)):
        (step,) = _steps(together.model_copy(update={"skip_below": limit}), neox, examples, corpus)
        assert bool(_only(step)[1].any()) == moves
    assert together.skip_below == 1e-2


@pytest.mark.parametrize("loss", [LossKind.SUPPRESS, LossKind.PREFER])
def test_losses_without_a_floor_are_not_ended_early(
    loss: LossKind, neox: LanguageModel, corpus: Corpus
) -> None:
    rows = (Example(prompt="A town is", target=" Port Louis", contrast=" big"),)
    edits = ExampleSet(loss=loss, rows=rows)
    steps = _steps(LocftBf(depth=0.5, learning_rate=1e-2, epochs=8), neox, edits, corpus)
    assert len(steps) == 8
    assert steps[-1].training_loss is not None
    assert steps[-1].training_loss < 0


def test_the_rate_stays_constant(neox: LanguageModel, examples: ExampleSet, corpus: Corpus) -> None:
    def last(schedule: str, epochs: int) -> list[torch.Tensor]:
        editor = LocftBf.model_validate(
            {"depth": 0.5, "epochs": epochs, "schedule": schedule, "stop_below": None}
        )
        return [_only(step)[1] for step in _steps(editor, neox, examples, corpus)]

    # With a constant rate the number of epochs changes nothing of the ones before.
    assert all(map(torch.equal, last("constant", 3), last("constant", 6)))
    assert not torch.equal(last("cosine", 3)[-1], last("cosine", 6)[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_trained_in_single_precision(
    dtype: torch.dtype, neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    own = dict(neox.network.named_parameters())
    half = LanguageModel(neox.twin(own=own).to(dtype), neox.tokenizer, id="half")
    *_, step = _steps(LocftBf(depth=0.5, epochs=2), half, examples, corpus)
    _, values = _only(step)
    assert values.dtype is torch.float32
    assert 0 < values.abs().max() < 1e-2
    half.check_unchanged()
    assert {weight.dtype for weight in half.network.parameters()} == {dtype}
