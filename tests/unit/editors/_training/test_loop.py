"""Gradient descent: accumulation, the published slip, KL and divergence."""

import math

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.delta import Dense, WeightDelta, check_finite
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_example, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors import find_editor
from tuner.editors._training.loop import kl_from_base
from tuner.editors.full_finetuning import FullFinetuning
from tuner.errors import EditError


def _last(
    editor: FullFinetuning, model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> WeightDelta:
    *_, step = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, WeightDelta)
    return step.delta


def _largest_difference(one: WeightDelta, other: WeightDelta) -> float:
    ours, theirs = one.tensors(), other.tensors()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _relative_distance(one: WeightDelta, other: WeightDelta) -> float:
    ours = torch.cat([tensor.flatten() for tensor in one.tensors().values()])
    theirs = torch.cat([tensor.flatten() for tensor in other.tensors().values()])
    return float((ours - theirs).norm() / ours.norm())


def test_micro_batches_accumulate_to_the_whole_batch(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    def edit(micro: int | None) -> WeightDelta:
        editor = FullFinetuning(
            learning_rate=1e-3, epochs=2, batch_size=3, micro_batch_size=micro, kl_weight=0
        )
        return _last(editor, neox, examples, corpus)

    # Adam divides by the gradient's size, so rounding may flip the sign of a vanishing gradient:
    # compare the whole change, not bit by bit. Using only the last example is 50 times as far.
    assert _relative_distance(edit(None), edit(1)) < 0.02
    assert _relative_distance(edit(None), edit(2)) < 0.02


def test_published_accumulation_uses_the_last_example_of_each_full_batch(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0)).tolist()
    # Batches of two of three examples: one step on the second of the order; the third is dropped.
    alone = examples.model_copy(update={"rows": (examples.rows[order[1]],)})
    exact = FullFinetuning(
        learning_rate=1e-3, epochs=1, batch_size=2, kl_weight=0, paper_exact=True
    )
    single = FullFinetuning(learning_rate=1e-3, epochs=1, batch_size=1, kl_weight=0)
    found = _last(exact, neox, examples, corpus)
    assert _largest_difference(found, _last(single, neox, alone, corpus)) == 0


def test_training_loss_is_independent_of_padding(
    model: LanguageModel, examples: ExampleSet
) -> None:
    rows = [encode_example(model, row) for row in examples.rows]
    with torch.no_grad():
        together = training_losses(model.network, examples.loss, rows, model.end_id)
        apart = [training_losses(model.network, examples.loss, [r], model.end_id) for r in rows]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-5)


def test_kl_is_the_definition_summed_over_positions(neox: LanguageModel, corpus: Corpus) -> None:
    name = f"{neox.architecture.mlp_modules(0)[0]}.weight"
    twin = neox.twin(own=(name,))
    blocks = corpus.blocks[:2]
    with torch.no_grad():
        assert float(kl_from_base(twin, neox, blocks)) == pytest.approx(0, abs=1e-5)
        weight = twin.get_parameter(name)
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        p = neox.network(input_ids=blocks).logits.double().log_softmax(-1)
        q = twin(input_ids=blocks).logits.double().log_softmax(-1)
        expected = float((p.exp() * (p - q)).sum()) / 2
        assert float(kl_from_base(twin, neox, blocks)) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_kl_weight_holds_the_edit_back(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    def divergence(weight: float) -> float:
        editor = FullFinetuning(learning_rate=3e-3, epochs=6, kl_weight=weight)
        delta = _last(editor, neox, examples, corpus)
        reference = neox.twin(own=dict(neox.network.named_parameters()))
        with torch.no_grad(), neox.edited(delta):
            base = reference(input_ids=corpus.blocks).logits.log_softmax(-1)
            edited = neox.network(input_ids=corpus.blocks).logits.log_softmax(-1)
            return float((base.exp() * (base - edited)).sum())

    assert divergence(10.0) < 0.5 * divergence(0.0)


def test_divergence_is_an_edit_error(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    broken = neox.twin(own=dict(neox.network.named_parameters()))
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    model = LanguageModel(broken, neox.tokenizer, id="broken")
    with pytest.raises(EditError, match="became nan"):
        _last(FullFinetuning(learning_rate=1e-3, epochs=1), model, examples, corpus)
    with pytest.raises(EditError, match="holds NaN"):
        check_finite(WeightDelta({"w": Dense(torch.tensor([math.inf]))}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["lora", "full_finetuning"])
def test_half_precision_models_are_trained_in_single_precision(
    name: str, dtype: torch.dtype, neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    model = LanguageModel(
        neox.twin(own=dict(neox.network.named_parameters())).to(dtype), neox.tokenizer, id="half"
    )
    editor = find_editor(name).model_validate({"learning_rate": 1e-3, "epochs": 2})
    *_, step = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, WeightDelta)
    assert all(tensor.dtype is torch.float32 for tensor in step.delta.tensors().values())
    assert any(tensor.abs().max() > 0 for tensor in step.delta.tensors().values())
    model.check_unchanged()
