"""LoRA: the delta is what peft trained, and the band is the published one."""

from typing import Literal

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from tuner.editing.corpus import Corpus
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.layers import layer_band
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors.lora import Lora


def test_band_is_centred_and_stays_inside() -> None:
    # The published formula with L = 12: c = ⌈pL⌉, from 6 − ⌊c/2⌋ to 6 + ⌈c/2⌉.
    assert list(layer_band(12, 0.5, 0.3)) == [4, 5, 6, 7, 8]
    assert list(layer_band(12, 0.5, 0.25)) == [5, 6, 7, 8]
    # With c = 0 the band is the middle layer alone.
    assert list(layer_band(12, 0.5, 0.0)) == [6]
    assert list(layer_band(12, 1.0, 0.0)) == [11]
    for count in (1, 2, 4, 6, 32):
        for center in (0.0, 0.3, 0.5, 1.0):
            for width in (0.01, 0.5, 1.0):
                band = layer_band(count, center, width)
                assert len(band) >= 1
                assert band.start >= 0
                assert band.stop <= count


@pytest.mark.parametrize("maps", ["mlp", "all"])
def test_delta_equals_the_adapted_network(
    maps: Literal["mlp", "all"], model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = Lora(learning_rate=1e-2, epochs=2, rank=3, width=0.3, maps=maps)
    *_, step = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, WeightDelta)
    # Every matrix of a layer is a linear map in these families; norms and biases are vectors.
    layer = f"{model.architecture.layer_module(1)}."
    matrices = {
        n for n, w in model.network.named_parameters() if n.startswith(layer) and w.ndim == 2
    }
    changed = {name for name in step.delta.changes if name.startswith(layer)}
    assert changed == matrices if maps == "all" else changed < matrices
    ids = torch.arange(20).reshape(2, 10)
    network = model.twin(own=())
    targets = [name.removesuffix(".weight") for name in step.delta.changes]
    config = LoraConfig(
        r=3, lora_alpha=3, target_modules=targets, fan_in_fan_out=model.architecture.transposed
    )
    inject_adapter_in_model(config, network)
    with torch.no_grad():
        for name, change in step.delta.changes.items():
            assert isinstance(change, LowRank)
            layer = network.get_submodule(name.removesuffix(".weight"))
            down, up = change.right, change.left
            if model.architecture.transposed:
                down, up = change.left.T, change.right.T
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
        adapted = network(input_ids=ids).logits
        with model.edited(step.delta):
            edited = model.network(input_ids=ids).logits
    torch.testing.assert_close(edited, adapted, rtol=1e-4, atol=1e-4)


def test_rank_and_layers_are_those_asked_for(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = Lora(learning_rate=1e-2, epochs=1, rank=5, center=0.0, width=0.01)
    (step,) = editor.edit(neox, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, WeightDelta)
    layers = {int(name.split(".")[2]) for name in step.delta.changes}
    assert layers == {0, 1}
    assert all(c.left.shape[1] == 5 for c in step.delta.changes.values() if isinstance(c, LowRank))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_gate_is_trained_only_where_asked(
    family: str, model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    gated = len(model.architecture.mlp_in) == 2
    for maps, count in (("up_down", 2), ("mlp", 3 if gated else 2)):
        editor = Lora.model_validate(
            {"learning_rate": 1e-2, "epochs": 1, "first_layer": 1, "maps": maps}
        )
        (step,) = editor.edit(model, examples, Auxiliary(corpus), seed=0)
        assert isinstance(step.delta, WeightDelta)
        assert len(step.delta.changes) == count
        if maps == "up_down":
            assert not any("gate" in name for name in step.delta.changes)
    assert Lora(learning_rate=1e-3).maps == "up_down"


@pytest.mark.parametrize("field", ["rank", "learning_rate", "width"])
def test_impossible_values_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Lora.model_validate({"learning_rate": 1e-3, field: -1})
