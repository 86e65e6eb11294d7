"""Target vectors: what they depend on, and that they do what they are sought for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tuner.editing.activations import changed_output
from tuner.editing.likelihood import encode_example, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.subject import locate_subject
from tuner.editing.task import ExampleSet, LossKind
from tuner.editors._locate_then_edit.target_vectors import TargetSettings, target_vectors
from tuner.files.cache import Cache

SETTINGS = TargetSettings(
    layer=1,
    site="layer",
    prefixes=("Chile is big",),
    steps=8,
    learning_rate=0.5,
    clamp=2.0,
    kl_weight=0.1,
    weight_decay=0.1,
)


def _loss_with(
    model: LanguageModel, examples: ExampleSet, vectors: torch.Tensor, settings: TargetSettings
) -> float:
    """The mean training loss when each subject's activation is replaced by its vector."""
    total = 0.0
    module = model.network.get_submodule(model.architecture.layer_module(settings.layer))
    for row, vector in zip(examples.rows, vectors, strict=True):
        position = locate_subject(model, row.prompt, row.subject).position

        def put(
            output: torch.Tensor, position: int = position, vector: torch.Tensor = vector
        ) -> torch.Tensor:
            output = output.clone()
            output[:, position] = vector.to(output.dtype)
            return output

        with changed_output(module, 1, put), torch.no_grad():
            encoded = [encode_example(model, row)]
            total += float(training_losses(model.network, examples.loss, encoded, model.end_id))
    return total / len(examples)


@pytest.mark.parametrize("loss", list(LossKind))
def test_the_vectors_lower_the_training_loss_of_every_kind(
    model: LanguageModel, examples: ExampleSet, loss: LossKind
) -> None:
    rows = tuple(row.model_copy(update={"contrast": " a big town"}) for row in examples.rows)
    kind = ExampleSet(loss=loss, rows=rows)
    settings = replace(SETTINGS, kl_weight=0.0, weight_decay=0.0)
    start = target_vectors(model, kind, replace(settings, steps=1), None)
    found = target_vectors(model, kind, settings, None)
    assert _loss_with(model, kind, found, settings) < _loss_with(model, kind, start, settings)


def test_one_look_takes_no_step_and_the_clamp_holds(
    neox: LanguageModel, examples: ExampleSet
) -> None:
    start = target_vectors(neox, examples, replace(SETTINGS, steps=1), None)
    found = target_vectors(neox, examples, replace(SETTINGS, clamp=0.3, steps=20), None)
    moved = (found - start).norm(dim=1) / start.norm(dim=1)
    assert (moved > 0).all()
    assert (moved <= 0.3 + 1e-5).all()


def test_facts_do_not_see_one_another(neox: LanguageModel, examples: ExampleSet) -> None:
    together = target_vectors(neox, examples, SETTINGS, None)
    apart = [
        target_vectors(neox, examples.model_copy(update={"rows": (row,)}), SETTINGS, None)
        for row in examples.rows
    ]
    # Adam turns rounding in a gradient of almost nothing into a step of full length, so the
    # vectors agree in what they do rather than in their last bits.
    assert torch.allclose(together, torch.cat(apart), rtol=1e-2, atol=1e-2)


def test_a_kept_vector_is_the_same_and_serves_only_its_own_settings(
    neox: LanguageModel, examples: ExampleSet, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    fresh = target_vectors(neox, examples, SETTINGS, None)
    first = target_vectors(neox, examples, SETTINGS, cache)
    kept = target_vectors(neox, examples, SETTINGS, cache)
    assert torch.equal(fresh, first)
    assert torch.equal(fresh, kept)
    assert len(list(tmp_path.glob("target_vectors/*.safetensors"))) == 1
    changes: list[dict[str, object]] = [
        {"layer": 0},
        {"site": "mlp"},
        {"prefixes": ()},
        {"steps": 7},
        {"learning_rate": 0.4},
        {"clamp": 0.1},
        {"kl_weight": 0.2},
        {"weight_decay": 0.2},
    ]
    for change in changes:
        other = replace(SETTINGS, **change)  # type: ignore[arg-type]
        assert torch.equal(
            target_vectors(neox, examples, other, cache),
            target_vectors(neox, examples, other, None),
        ), change
    assert len(list(tmp_path.glob("target_vectors/*.safetensors"))) == 1 + len(changes)


def test_another_model_gets_its_own_vectors(
    neox: LanguageModel, examples: ExampleSet, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    first = target_vectors(neox, examples, SETTINGS, cache)
    twin = neox.twin(own=dict(neox.network.named_parameters()))
    with torch.no_grad():
        next(twin.parameters()).mul_(1.1)
    other = LanguageModel(twin, neox.tokenizer, id=neox.id)
    assert not torch.equal(first, target_vectors(other, examples, SETTINGS, cache))
