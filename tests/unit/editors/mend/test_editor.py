"""MEND: the untrained network is gradient descent, training betters it, and happens once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tuner.editing.corpus import Corpus
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import (
    EncodedExample,
    MeanOver,
    encode_example,
    shares_of,
    success_losses,
    training_losses,
)
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind, Split, Task
from tuner.editors._locate_then_edit.layer_band_editor import Factors
from tuner.editors.mend.editor import Mend
from tuner.editors.mend.network import GradientNetwork
from tuner.editors.mend.token_gradients import TokenGradients, moved_maps, token_gradients
from tuner.editors.mend.training import (
    GradientSettings,
    _MendTraining,
    edited_maps,
    gradient_network,
    held_out_loss,
    new_network,
)
from tuner.errors import ConfigError, EditError
from tuner.files.cache import Cache
from tuner.testing.tiny_models import make_tiny_model

SETTINGS = GradientSettings(
    layers=2,
    rank=8,
    step_size=1e-3,
    learning_rate=1e-3,
    step_size_rate=1e-3,
    edit_weight=1.0,
    general_weight=0.0,
    edits_per_step=2,
    accumulation=1,
    clip=100.0,
    training_steps=20,
    patience=20,
    check_every=5,
    held_out=0.3,
    seed=0,
)


def _rows(model: LanguageModel, examples: ExampleSet) -> list[EncodedExample]:
    return [encode_example(model, row) for row in examples.rows]


def _found(model: LanguageModel, examples: ExampleSet) -> dict[str, TokenGradients]:
    maps = tuple(edited_maps(model, SETTINGS.layers))
    rows = _rows(model, examples)
    return token_gradients(model.network, maps, examples.loss, rows, model.end_id)


def _loss(model: LanguageModel, examples: ExampleSet) -> float:
    with torch.no_grad():
        rows = _rows(model, examples)
        return float(training_losses(model.network, examples.loss, rows, model.end_id).mean())


def test_the_untrained_network_is_plain_gradient_descent(
    model: LanguageModel, examples: ExampleSet
) -> None:
    maps = edited_maps(model, SETTINGS.layers)
    network = model.twin(own=[f"{name}.weight" for name in maps])
    weights = [network.get_parameter(f"{name}.weight").requires_grad_(True) for name in maps]
    rows = _rows(model, examples)
    losses = training_losses(network, examples.loss, rows, model.end_id)
    loss = (losses * shares_of(rows, "tokens")).mean()
    with torch.no_grad():
        changes = new_network(model, SETTINGS)(_found(model, examples))
    for name, gradient in zip(maps, torch.autograd.grad(loss, weights), strict=True):
        change = changes[name].left @ changes[name].right
        if model.architecture.transposed:
            change = change.T
        torch.testing.assert_close(change, -1e-3 * gradient, rtol=1e-4, atol=1e-7)


def test_a_batch_of_edits_is_one_mean_loss_and_one_sum_over_tokens(
    neox: LanguageModel, examples: ExampleSet
) -> None:
    together = _found(neox, examples)
    apart = [_found(neox, examples.model_copy(update={"rows": (row,)})) for row in examples.rows]
    for name, tokens in together.items():
        lengths = [row.target.target_length for row in _rows(neox, examples)]
        mean = sum(
            one[name].gradients.T @ one[name].inputs * length / sum(lengths)
            for one, length in zip(apart, lengths, strict=True)
        )
        torch.testing.assert_close(tokens.gradients.T @ tokens.inputs, mean, rtol=1e-4, atol=1e-6)
        # Padding adds no token.
        assert len(tokens.inputs) == sum(len(one[name].inputs) for one in apart)


@pytest.mark.parametrize("mean_over", ["tokens", "examples"])
def test_edits_count_by_their_targets_tokens_or_alike(
    mean_over: MeanOver, neox: LanguageModel
) -> None:
    """The gradient of the mean over all target tokens, written out."""
    examples = ExampleSet(
        loss=LossKind.LIKELIHOOD,
        rows=(
            Example(prompt="The capital of Togo is", target=" Lome"),
            Example(prompt="A big town is", target=" Port Louis of Mauritius and Chile"),
        ),
    )
    (name,) = list(edited_maps(neox, 1))[-1:]
    network = neox.twin(own=[f"{name}.weight"])
    weight = network.get_parameter(f"{name}.weight").requires_grad_(True)
    losses = []
    for row in _rows(neox, examples):
        said = network(input_ids=torch.tensor([row.target.ids])).logits[0].log_softmax(-1)
        places = range(row.target.start, len(row.target.ids))
        losses.append(-torch.stack([said[place - 1, row.target.ids[place]] for place in places]))
    assert len(losses[0]) < len(losses[1])
    means = {
        "tokens": torch.cat(losses).mean(),
        "examples": (losses[0].mean() + losses[1].mean()) / 2,
    }
    (expected,) = torch.autograd.grad(means[mean_over], weight)
    rows = _rows(neox, examples)
    found = token_gradients(neox.network, (name,), examples.loss, rows, neox.end_id, mean_over)[
        name
    ]
    torch.testing.assert_close(found.gradients.T @ found.inputs, expected, rtol=1e-3, atol=1e-6)
    assert Mend().mean_over == "tokens"


def test_the_loss_in_training_is_a_mean_over_tokens(
    neox: LanguageModel, corpus: Corpus, training: Split
) -> None:
    """Where an edit changes nothing, the loss is that of the in-scope rows' own tokens."""
    rows = tuple(
        row.model_copy(update={"target": " Port Louis of Chile" if place % 2 else " big"})
        for place, row in enumerate(training.ood.rows)
    )
    # One row in scope of each edit, so that none is drawn.
    ood = training.ood.model_copy(update={"rows": rows[:6]})
    split = training.model_copy(update={"ood": ood})
    settings = replace(SETTINGS, step_size=1e-30, edits_per_step=6, held_out=0.5)
    found = {}
    for mean_over in ("tokens", "examples"):
        changed = replace(settings, mean_over=mean_over)
        found[mean_over] = held_out_loss(neox, split, corpus, changed, new_network(neox, changed))
    held = _MendTraining(neox, split, corpus, settings).held_out
    encoded = [edit.in_scope[0] for edit in held]
    with torch.no_grad():
        sums = success_losses(neox.network, LossKind.LIKELIHOOD, encoded, neox.end_id)
    lengths = torch.tensor([float(row.target.target_length) for row in encoded])
    assert len(lengths.unique()) > 1
    assert found["tokens"] == pytest.approx(float(sums.sum() / lengths.sum()), rel=1e-4)
    assert found["examples"] == pytest.approx(float((sums / lengths).mean()), rel=1e-4)


def test_after_normalisation_the_step_still_goes_downhill(
    neox: LanguageModel, examples: ExampleSet
) -> None:
    found = _found(neox, examples)
    network = new_network(neox, SETTINGS)
    network.observe(found)
    with torch.no_grad():
        changes = network(found)
    rows = _rows(neox, examples)
    before = _loss(neox, examples)
    with torch.no_grad(), moved_maps(neox.network, changes):
        after = float(training_losses(neox.network, examples.loss, rows, neox.end_id).mean())
    assert after < before
    neox.check_unchanged()


def test_normalisation_is_that_of_all_tokens_seen_so_far() -> None:
    random = torch.Generator().manual_seed(0)
    tokens = TokenGradients(
        3 + 2 * torch.randn(50, 4, generator=random), torch.randn(50, 3, generator=random)
    )
    network = GradientNetwork({"one": (4, 3)}, rank=2, step_size=1.0, seed=0)
    for start in (0, 7, 20):
        stop = {0: 7, 7: 20, 20: 50}[start]
        part = TokenGradients(tokens.inputs[start:stop], tokens.gradients[start:stop])
        network.observe({"one": part})
    with torch.no_grad():
        change = network({"one": tokens})["one"]
    expected = (tokens.inputs - tokens.inputs.mean(dim=0)) / tokens.inputs.std(dim=0)
    torch.testing.assert_close(change.right, expected, rtol=1e-4, atol=1e-5)
    again = GradientNetwork({"one": (4, 3)}, rank=2, step_size=1.0, seed=0)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again({"one": tokens})["one"].right, change.right)


def test_maps_of_equal_shape_share_a_network_but_not_its_scales(neox: LanguageModel) -> None:
    network = new_network(neox, SETTINGS)
    assert len(edited_maps(neox, SETTINGS.layers)) == 4
    assert sorted(network.networks) == ["32x64", "64x32"]
    assert {tuple(shared.first.scale.shape) for shared in network.networks.values()} == {(2, 96)}
    assert network.step_sizes.shape == (4,)


def test_what_is_trained_on_is_what_the_delta_does(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus, training: Split
) -> None:
    editor = Mend(rank=4, training_steps=2, check_every=1, layers=2)
    (step,) = editor.edit(model, examples, Auxiliary(corpus, training=training), seed=0)
    assert isinstance(step.delta, WeightDelta)
    changes = {}
    for name, change in step.delta.changes.items():
        assert isinstance(change, LowRank)
        tokens = sum(len(row.target.ids) for row in _rows(model, examples))
        assert change.left.shape[1] <= tokens
        left, right = change.left, change.right
        if model.architecture.transposed:
            left, right = right.T, left.T
        changes[name.removesuffix(".weight")] = Factors(left, right)
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        with moved_maps(model.network, changes):
            moved = model.network(input_ids=ids, use_cache=False).logits
        with model.edited(step.delta):
            edited = model.network(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(edited, moved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("general_weight", [0.0, 1.0])
def test_training_lowers_the_loss_of_edits_that_it_never_saw(
    general_weight: float, neox: LanguageModel, corpus: Corpus, training: Split
) -> None:
    settings = replace(SETTINGS, general_weight=general_weight)
    untrained = new_network(neox, settings)
    before = held_out_loss(neox, training, corpus, settings, untrained)
    trained = gradient_network(neox, training, corpus, settings, None)
    assert held_out_loss(neox, training, corpus, settings, trained) < before
    assert not torch.equal(trained.step_sizes, untrained.step_sizes)
    neox.check_unchanged()


def test_a_second_trial_finds_the_trained_network_and_gives_the_same_bits(
    neox: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
    training: Split,
    tmp_path: Path,
) -> None:
    cache = Cache(tmp_path)
    aux = Auxiliary(corpus, training=training, cache=cache)
    editor = Mend(rank=4, training_steps=3, check_every=1)
    (first,) = editor.edit(neox, examples, aux, seed=0)
    (kept,) = tmp_path.glob("gradient_network/*.safetensors")
    written = kept.stat().st_mtime_ns
    (again,) = editor.edit(neox, examples, aux, seed=1)
    assert kept.stat().st_mtime_ns == written
    ours, theirs = first.delta.tensors(), again.delta.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Another seed of the training or other training edits make another network.
    rows = training.canonical.rows[:-1]
    fewer = training.model_copy(update={"canonical": ExampleSet(loss=examples.loss, rows=rows)})
    for method, given in (
        (editor.model_copy(update={"training_seed": 1}), aux),
        (editor, replace(aux, training=fewer)),
    ):
        (found,) = method.edit(neox, examples, given, seed=0)
        other = found.delta.tensors()
        assert not any(torch.equal(ours[name], other[name]) for name in ours)
    assert len(list(tmp_path.glob("gradient_network/*.safetensors"))) == 3


def test_batches_share_the_network_of_the_model_before_all_of_them(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, training: Split, tmp_path: Path
) -> None:
    aux = Auxiliary(corpus, training=training, cache=Cache(tmp_path))
    editor = Mend(rank=4, training_steps=2, check_every=1, batches=3)
    *_, last = editor.edit(neox, examples, aux, seed=0)
    assert len(list(tmp_path.glob("gradient_network/*.safetensors"))) == 1
    before = _loss(neox, examples)
    with neox.edited(last.delta):
        assert _loss(neox, examples) < before


def test_tasks_without_training_edits_are_refused(
    neox: LanguageModel, task: Task, examples: ExampleSet, corpus: Corpus, training: Split
) -> None:
    editor = Mend()
    with pytest.raises(ConfigError, match="learns from other edits, and the task has none"):
        editor.check_task(task)
    with pytest.raises(ConfigError, match="learns from other edits"):
        next(editor.edit(neox, examples, Auxiliary(corpus), seed=0))
    editor.check_task(task.model_copy(update={"train": training}))
    outside = training.hard_negatives.model_copy(update={"rows": ()})
    narrow = task.model_copy(
        update={"train": training.model_copy(update={"hard_negatives": outside})}
    )
    with pytest.raises(ConfigError, match="0 of those with rows out of it"):
        editor.check_task(narrow)
    Mend(general_weight=1.0).check_task(narrow)


def test_a_training_that_diverges_is_an_edit_error(
    neox: LanguageModel, corpus: Corpus, training: Split
) -> None:
    settings = replace(SETTINGS, step_size_rate=1e30)
    with pytest.raises(EditError, match="lower learning_rate"):
        gradient_network(neox, training, corpus, settings, None)


def test_half_precision_models_are_trained_for_in_single_precision(
    tokenizer: PreTrainedTokenizerFast, examples: ExampleSet, corpus: Corpus, training: Split
) -> None:
    half = make_tiny_model("gpt_neox", tokenizer)
    half = LanguageModel(half.network.half(), half.tokenizer, id="tiny-half")
    editor = Mend(rank=4, training_steps=2, check_every=1)
    (step,) = editor.edit(half, examples, Auxiliary(corpus, training=training), seed=0)
    assert all(tensor.dtype is torch.float32 for tensor in step.delta.tensors().values())
    half.check_unchanged()
