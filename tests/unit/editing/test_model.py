"""Any causal LM: loading, editing in place and exact restoration."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tuner.editing.delta import Dense, LowRank, Rows, WeightDelta
from tuner.editing.model import LanguageModel, load_model
from tuner.errors import BaseMismatch, ConfigError, EditError
from tuner.testing.tiny_models import FAMILIES, make_tiny_model


def _bits(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.network.named_parameters()}


def _delta(model: LanguageModel) -> WeightDelta:
    name = f"{model.architecture.mlp_modules(1)[0]}.weight"
    rows, columns = model.network.get_parameter(name).shape
    embedding = next(iter(dict(model.network.named_parameters())))
    width = model.network.get_parameter(embedding).shape[1]
    return WeightDelta(
        {
            name: LowRank(torch.randn(rows, 2), torch.randn(2, columns)),
            embedding: Rows(torch.tensor([3, 5]), torch.randn(2, width)),
        }
    )


def test_saved_model_loads_and_says_the_same(model: LanguageModel, tmp_path: Path) -> None:
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.fingerprint == load_model(str(tmp_path)).fingerprint
    assert all(torch.equal(w, loaded.network.get_parameter(n)) for n, w in _bits(model).items())
    assert loaded.complete("The capital of Togo is") == model.complete("The capital of Togo is")


def test_exact_bits_return_after_edit_and_after_error(model: LanguageModel) -> None:
    before = _bits(model)
    delta = _delta(model)
    with model.edited(delta):
        changed = [
            name
            for name, weight in model.network.named_parameters()
            if not torch.equal(weight, before[name])
        ]
        assert sorted(changed) == sorted(delta.changes)
        with pytest.raises(EditError, match="changed outside"):
            model.check_unchanged()
    with pytest.raises(RuntimeError, match="boom"), model.edited(delta):
        raise RuntimeError("boom")
    assert all(torch.equal(w, before[n]) for n, w in model.network.named_parameters())
    model.check_unchanged()


def test_half_precision_holds_the_nearest_weights(neox: LanguageModel) -> None:
    neox.network.to(torch.bfloat16)
    name = f"{neox.architecture.mlp_modules(0)[0]}.weight"
    weight = neox.network.get_parameter(name)
    change = torch.full(weight.shape, 0.01)
    expected = (weight.float() + change).to(torch.bfloat16)
    with neox.edited(WeightDelta({name: Dense(change)})):
        assert torch.equal(neox.network.get_parameter(name), expected)


def test_twin_shares_weights_and_owns_what_is_asked(model: LanguageModel) -> None:
    name = f"{model.architecture.mlp_modules(0)[0]}.weight"
    twin = model.twin(own=(name,))
    for other, weight in twin.named_parameters():
        shared = weight.data_ptr() == model.network.get_parameter(other).data_ptr()
        assert shared is (other != name)


@pytest.mark.parametrize("family", FAMILIES[:1])
def test_wrong_deltas_are_refused_and_change_nothing(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_tiny_model(family, tokenizer)
    name = f"{model.architecture.mlp_modules(0)[0]}.weight"
    wrong = (
        WeightDelta({"no.such.weight": Dense(torch.zeros(2))}),
        WeightDelta({name: Dense(torch.zeros(2, 2))}),
        WeightDelta({name: LowRank(torch.zeros(2, 1), torch.zeros(1, 2))}),
    )
    for delta in wrong:
        with pytest.raises(BaseMismatch), model.edited(delta):
            pytest.fail("a misfit was applied")
    model.check_unchanged()


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("builtin:neoks", "Did you mean 'neox'"),
        ("./absent", "does not exist"),
    ],
)
def test_unknown_models_are_named(id: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_model(id)


def test_the_same_weights_under_other_settings_are_another_model(neox: LanguageModel) -> None:
    twin = neox.twin(own=())
    twin.config = type(twin.config)(**{**neox.network.config.to_dict(), "layer_norm_eps": 0.1})
    other = LanguageModel(twin, neox.tokenizer, id=neox.id)
    same = LanguageModel(neox.twin(own=()), neox.tokenizer, id="under another name")
    assert other.fingerprint != neox.fingerprint
    assert same.fingerprint == neox.fingerprint


def test_damaged_weights_and_foreign_code_are_refused(neox: LanguageModel, tmp_path: Path) -> None:
    neox.network.save_pretrained(tmp_path)
    neox.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(tmp_path))
    weights.unlink()
    torch.save(neox.network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("device", "says"), [("tpu9", "is not a device"), ("cuda", "no GPU")])
def test_absent_devices_are_refused(device: str, says: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=says):
        load_model("builtin:neox", device=device)


def test_completing_beyond_the_context_is_refused(model: LanguageModel) -> None:
    most = model.context_length
    prompt = model.tokenizer.decode(model.encode(" town" * 200)[: most - 8])
    length = len(model.encode_prompt(str(prompt)))
    assert isinstance(model.complete(str(prompt), max_new_tokens=most - length), str)
    with pytest.raises(ConfigError, match=rf"{most} tokens, but got {length} and 9\. Shorten"):
        model.complete(str(prompt), max_new_tokens=9)
