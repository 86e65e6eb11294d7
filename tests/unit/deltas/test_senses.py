"""Changes of senses: exact, additive, stored as their rows, refused where they do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.bundles import bundle_of
from tests.support.sense_edits import random_senses
from tuner.backpack import SenseOffsets
from tuner.bundle.bundle import Bundle
from tuner.bundle.export import export
from tuner.bundle.files import TENSORS_FILE
from tuner.deltas.senses import SenseDelta
from tuner.editing.companions import Companions, Surroundings
from tuner.editing.delta import AdditiveDelta, check_finite
from tuner.editing.model import LanguageModel, load_model
from tuner.errors import BaseMismatch, ConfigError, EditError

IDS = torch.arange(60, 84).reshape(2, 12)
SURROUNDINGS = Surroundings(Companions(), lambda: pytest.fail("senses need no tokenizer"))


@torch.no_grad()
def _logits(model: LanguageModel) -> Tensor:
    logits: Tensor = model.network(IDS).logits
    return logits


def _table(model: LanguageModel) -> Tensor:
    table: Tensor = model.network.backpack.sense_table()
    return table


def _in_full(model: LanguageModel, delta: SenseDelta) -> Tensor:
    """The change of every sense of every token."""
    full = torch.zeros_like(_table(model))
    for (token, sense), vector in zip(delta.pairs.tolist(), delta.vectors, strict=True):
        full[token, sense] += vector
    return full


def test_only_the_named_senses_change_and_the_exact_bits_return(backpack: LanguageModel) -> None:
    delta = random_senses(backpack, [0, 62, 75])
    before, said = _table(backpack), _logits(backpack)
    with backpack.edited(delta):
        assert torch.equal(_table(backpack), before + _in_full(backpack, delta))
        assert not torch.equal(_logits(backpack), said)
        with pytest.raises(EditError, match="changed outside"):
            backpack.check_unchanged()
    assert torch.equal(_table(backpack), before)
    assert torch.equal(_logits(backpack), said)
    assert "backpack.offsets.pairs" not in backpack.network.state_dict()
    with pytest.raises(RuntimeError, match="boom"), backpack.edited(delta):
        raise RuntimeError("boom")
    assert torch.equal(_logits(backpack), said)
    backpack.check_unchanged()


def test_strength_and_sum_are_those_of_the_vectors(backpack: LanguageModel) -> None:
    one = random_senses(backpack, [62, 75], seed=0)
    other = random_senses(backpack, [75, 62, 90], seed=1)
    shared = {tuple(pair) for pair in one.pairs.tolist()} & set(map(tuple, other.pairs.tolist()))
    assert shared, "the two must overlap"
    total = one.scaled(0.5).plus(other)
    assert len(total.pairs) == len(one.pairs) + len(other.pairs) - len(shared)
    expected = 0.5 * _in_full(backpack, one) + _in_full(backpack, other)
    torch.testing.assert_close(_in_full(backpack, total), expected)
    assert isinstance(total, AdditiveDelta)
    none = SenseDelta(torch.empty(0, 2, dtype=torch.long), torch.empty(0, 32))
    assert torch.equal(_in_full(backpack, none.plus(one)), _in_full(backpack, one))
    with backpack.edited(one):
        inside = _logits(backpack)
    said = _logits(backpack)
    with backpack.edited(one.scaled(0.0)):
        assert torch.equal(_logits(backpack), said)
    with backpack.edited(one.scaled(0.5).plus(one.scaled(0.5))):
        torch.testing.assert_close(_logits(backpack), inside)


def test_edits_within_edits_and_on_written_ones_add_up(backpack: LanguageModel) -> None:
    one = random_senses(backpack, [62, 75], seed=0)
    other = random_senses(backpack, [75, 62, 90], seed=1)
    base, said = _table(backpack), _logits(backpack)
    expected = base + _in_full(backpack, one) + _in_full(backpack, other)
    with backpack.edited(one):
        with backpack.edited(other):
            torch.testing.assert_close(_table(backpack), expected)
            together = _logits(backpack)
        assert torch.equal(_table(backpack), base + _in_full(backpack, one))
    after = backpack.after(one)
    own = _logits(after)
    assert torch.equal(_table(after), base + _in_full(backpack, one))
    assert after.network.backpack.gpt2_model.wte.weight is backpack.network.lm_head.weight
    with after.edited(other):
        torch.testing.assert_close(_table(after), expected)
        torch.testing.assert_close(_logits(after), together)
    assert torch.equal(_logits(after), own)
    torch.testing.assert_close(_logits(after.after(other)), together)
    assert torch.equal(_logits(backpack), said)
    for model in (backpack, after):
        model.check_unchanged()


def test_only_its_rows_are_stored(backpack: LanguageModel) -> None:
    delta = random_senses(backpack, [62, 75])
    stored = delta.tensors()
    assert {name: tuple(part.shape) for name, part in stored.items()} == {
        "pairs": (4, 2),
        "vectors": (4, 32),
    }
    again = SenseDelta.restore(None, stored, SURROUNDINGS)
    assert torch.equal(again.pairs, delta.pairs)
    assert torch.equal(again.vectors, delta.vectors)
    assert delta.describe() == "4 senses of 2 tokens, 128 numbers"
    assert list(delta.changed) == []


PAIRS, VECTORS = torch.tensor([[3, 0], [4, 1]]), torch.ones(2, 32)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"pairs": PAIRS},
        {"pairs": PAIRS, "vectors": VECTORS, "more": VECTORS},
        {"pairs": PAIRS.float(), "vectors": VECTORS},
        {"pairs": PAIRS.flatten(), "vectors": VECTORS},
        {"pairs": PAIRS[:, :1], "vectors": VECTORS},
        {"pairs": PAIRS, "vectors": VECTORS[:1]},
        {"pairs": PAIRS, "vectors": VECTORS[0]},
        {"pairs": PAIRS, "vectors": VECTORS.long()},
        {"pairs": PAIRS[[0, 0]], "vectors": VECTORS},
    ],
)
def test_damaged_parts_are_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="change of senses"):
        SenseDelta.restore(None, tensors, SURROUNDINGS)


@pytest.mark.parametrize(
    ("pairs", "width"),
    [([[317, 0]], 32), ([[-1, 0]], 32), ([[3, 4]], 32), ([[3, -1]], 32), ([[3, 0]], 16)],
)
def test_misfits_are_refused_and_change_nothing(
    pairs: list[list[int]], width: int, backpack: LanguageModel
) -> None:
    delta = SenseDelta(torch.tensor(pairs), torch.ones(1, width))
    assert backpack.network.config.vocab_size == 317
    with pytest.raises(BaseMismatch, match="do not fit a Backpack of 317 tokens, 4 senses"):
        delta.write(backpack.network)
    with pytest.raises(BaseMismatch), backpack.edited(delta):
        pytest.fail("a misfit was applied")
    assert backpack.network.backpack.offsets is None
    backpack.check_unchanged()


def test_other_families_have_no_senses(neox: LanguageModel, backpack: LanguageModel) -> None:
    with pytest.raises(BaseMismatch, match="only a Backpack has"):
        neox.after(random_senses(backpack, [62]))


def test_diverged_vectors_are_told(backpack: LanguageModel) -> None:
    with pytest.raises(EditError, match="vectors holds NaN"):
        check_finite(random_senses(backpack, [62]).scaled(float("nan")))


def test_applied_again_and_again_it_learns_nothing(backpack: LanguageModel) -> None:
    delta = random_senses(backpack, [62])
    with backpack.edited(delta):
        assert isinstance(backpack.network.backpack.offsets, SenseOffsets)
        assert not any(weight.requires_grad for weight in backpack.network.parameters())


def test_a_bundle_keeps_it(backpack: LanguageModel, tmp_path: Path) -> None:
    delta = random_senses(backpack, [62, 75])
    bundle = bundle_of(backpack, delta, editor="senses")
    folder = bundle.save(tmp_path / "edit")
    assert load_file(folder / TENSORS_FILE)["vectors"].shape == (4, 32)
    loaded = Bundle.load(folder)
    assert loaded.manifest == bundle.manifest
    loaded.check_base(backpack)
    with backpack.edited(delta):
        expected = _logits(backpack)
    with backpack.edited(loaded.delta):
        assert torch.equal(_logits(backpack), expected)
    # The same change of a model that is edited already is for another base.
    with pytest.raises(BaseMismatch, match="cannot be used with"):
        loaded.check_base(backpack.after(delta))


def test_merged_it_loads_as_the_edited_model(backpack: LanguageModel, tmp_path: Path) -> None:
    bundle = bundle_of(backpack, random_senses(backpack, [62, 75]), editor="senses")
    said = _logits(backpack)
    export(bundle, tmp_path / "merged", format="merged", model=backpack)
    with backpack.edited(bundle.delta):
        expected = _logits(backpack)
    loaded = load_model(str(tmp_path / "merged"))
    assert torch.equal(_logits(loaded), expected)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, expected)
    assert torch.equal(_logits(backpack), said)
    backpack.check_unchanged()
    # transformers does not know Backpacks; whoever follows the card must be able to load it.
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "import tuner" in card


def test_it_has_no_peft_form(backpack: LanguageModel, tmp_path: Path) -> None:
    bundle = bundle_of(backpack, random_senses(backpack, [62]), editor="senses")
    with pytest.raises(ConfigError, match="no PEFT form; export it as `merged` or `delta`"):
        export(bundle, tmp_path / "adapter", format="peft")
    assert not (tmp_path / "adapter").exists()
    export(bundle, tmp_path / "delta", format="delta")
    assert isinstance(Bundle.load(tmp_path / "delta").delta, SenseDelta)
