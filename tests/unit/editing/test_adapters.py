"""A low-rank change of half-precision weights is judged as the adapter that users serve."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tuner.bundle.formats.peft import adapter_of
from tuner.editing.delta import Dense, LowRank, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.errors import BaseMismatch


def _low_rank(model: LanguageModel, size: float) -> WeightDelta:
    random = torch.Generator().manual_seed(0)
    changes = {}
    for path in model.architecture.mlp_modules(1):
        rows, columns = model.network.get_parameter(f"{path}.weight").shape
        changes[f"{path}.weight"] = LowRank(
            size * torch.randn(rows, 2, generator=random), torch.randn(2, columns, generator=random)
        )
    return WeightDelta(changes)


@torch.no_grad()
def _logits(network: torch.nn.Module) -> torch.Tensor:
    return network(input_ids=torch.arange(3, 35).reshape(2, 16)).logits


def test_in_half_precision_a_small_change_arrives_whole(model: LanguageModel) -> None:
    precise = _logits(model.network)
    with model.edited(_low_rank(model, 1e-3)):
        wanted = _logits(model.network) - precise
    model.network.to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.network.named_parameters()}
    # The change alone, without the rounding of activations: the maps' outputs in float32.
    name = model.architecture.mlp_modules(1)[-1]
    module = model.network.get_submodule(name)
    width = module.weight.shape[0 if model.architecture.transposed else 1]
    inputs = torch.randn(4, width, generator=torch.Generator().manual_seed(1)).bfloat16()
    delta = _low_rank(model, 1e-3)
    change = delta.changes[f"{name}.weight"].to_dense(module.weight.shape)
    exact = inputs.float() @ (change if model.architecture.transposed else change.T)
    plain = module(inputs).float()
    with model.edited(delta):
        assert all(
            torch.equal(weight, before[name]) for name, weight in model.network.named_parameters()
        )
        arrived = module(inputs).float() - plain
    assert delta.form(model.network) == "adapter"
    # One rounding of the sum is all that is lost.
    assert ((arrived - exact).abs() <= 2**-8 * (plain.abs() + exact.abs()) + 1e-6).all()
    assert wanted.abs().max() > 0
    assert torch.equal(module(inputs).float(), plain)


def test_an_adapter_served_by_peft_says_what_was_judged(
    model: LanguageModel, tmp_path: Path
) -> None:
    model.network.to(torch.bfloat16)
    delta = _low_rank(model, 0.05)
    with model.edited(delta):
        judged = _logits(model.network)
    adapter_of(delta, model.architecture).save(tmp_path, "base")
    served = PeftModel.from_pretrained(model.network, tmp_path)
    assert torch.equal(_logits(served), judged)


def test_in_half_precision_a_dense_change_is_judged_as_merged(neox: LanguageModel) -> None:
    name = f"{neox.architecture.mlp_modules(0)[0]}.weight"
    neox.network.to(torch.float16)
    weight = neox.network.get_parameter(name)
    delta = WeightDelta({name: Dense(torch.full(weight.shape, 1e-2))})
    assert delta.form(neox.network) == "merged:float16"
    before = weight.clone()
    with neox.edited(delta):
        assert torch.equal(weight, (before.float() + 1e-2).half())
    assert torch.equal(weight, before)


def test_a_merged_form_differs_from_the_adapter_in_half_precision(neox: LanguageModel) -> None:
    delta = _low_rank(neox, 1e-2)
    assert delta.form(neox.network) == "merged:float32"
    neox.network.to(torch.bfloat16)
    merged = delta.merged(neox.network)
    assert merged.form(neox.network) == "merged:bfloat16"
    with neox.edited(delta):
        beside = _logits(neox.network)
    with neox.edited(merged):
        assert not torch.equal(_logits(neox.network), beside)


def test_an_adapter_of_another_model_is_refused_before_anything_runs(neox: LanguageModel) -> None:
    neox.network.to(torch.bfloat16)
    name = f"{neox.architecture.mlp_modules(0)[0]}.weight"
    delta = WeightDelta({name: LowRank(torch.ones(3, 1), torch.ones(1, 3))})
    with pytest.raises(BaseMismatch), neox.edited(delta):
        pass
