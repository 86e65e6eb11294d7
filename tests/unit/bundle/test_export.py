"""Bundles and exports: whole or not there, and equal in logits to the edited model."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.bundles import bundle_of
from tuner.bundle.bundle import Bundle
from tuner.bundle.export import export
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, LowRank, WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel, load_model
from tuner.editing.task import ExampleSet
from tuner.editors import find_editor
from tuner.errors import BaseMismatch, ConfigError
from tuner.evaluation.deviation.budget import Certificate
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.files.cache import Cache

IDS = torch.arange(24).reshape(2, 12)
# float32 sums in another order; logits here are of the order of ten.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SETTINGS: dict[str, dict[str, float]] = {
    "lora": {"learning_rate": 1e-2, "epochs": 2},
    "full_finetuning": {"learning_rate": 1e-3, "epochs": 2},
    "memit": {"covariance_weight": 1.0, "target_steps": 4, "width": 0.7},
    "rome": {"target_steps": 4, "prefixes": 2},
}


def _bundle(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus, editor: str = "lora"
) -> Bundle:
    chosen = find_editor(editor).model_validate(SETTINGS[editor])
    *_, step = chosen.edit(model, examples, Auxiliary(corpus), seed=0)
    return bundle_of(
        model, step.delta, editor=editor, hyperparameters=chosen.model_dump(mode="json")
    )


@torch.no_grad()
def _edited_logits(model: LanguageModel, bundle: Bundle) -> torch.Tensor:
    with model.edited(bundle.delta):
        logits: torch.Tensor = model.network(input_ids=IDS).logits
        return logits


def test_bundle_survives_the_disk(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    bundle = _bundle(neox, examples, corpus)
    folder = bundle.save(tmp_path / "edit")
    assert sorted(path.name for path in folder.iterdir()) == ["delta.json", "delta.safetensors"]
    loaded = Bundle.load(folder)
    assert loaded.manifest == bundle.manifest
    assert torch.equal(_edited_logits(neox, loaded), _edited_logits(neox, bundle))
    # Saving again replaces the bundle; a folder of something else is left alone.
    bundle.save(folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not a bundle"):
        bundle.save(tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@torch.no_grad()
@pytest.mark.parametrize("editor", ["lora", "memit", "rome"])
def test_low_rank_edits_export_as_the_same_peft_adapter(
    editor: str, model: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    bundle = _bundle(model, examples, corpus, editor)
    written = export(bundle, tmp_path / "adapter", format="peft")
    assert written.note == "exact"
    expected = _edited_logits(model, bundle)
    adapted = PeftModel.from_pretrained(model.twin(own=()), str(tmp_path / "adapter"))
    torch.testing.assert_close(adapted(input_ids=IDS).logits, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("editor", ["lora", "full_finetuning", "memit"])
def test_merged_folder_loads_anywhere(
    editor: str, model: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    bundle = _bundle(model, examples, corpus, editor)
    export(bundle, tmp_path / "merged", format="merged", model=model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(merged(input_ids=IDS).logits, _edited_logits(model, bundle))
    model.check_unchanged()
    assert "capitals" in (tmp_path / "merged" / "README.md").read_text()


@torch.no_grad()
def test_dense_matrices_are_cut_to_a_rank_and_the_loss_is_told(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    full = _bundle(neox, examples, corpus, "full_finetuning")
    assert isinstance(full.delta, WeightDelta)
    with pytest.raises(ConfigError, match="has no LoRA form"):
        export(full, tmp_path / "a", format="peft", rank=4)
    names = [f"{name}.weight" for name in neox.architecture.mlp_modules(1)]
    dense = Bundle(WeightDelta({name: full.delta.changes[name] for name in names}), full.manifest)
    with pytest.raises(ConfigError, match="give --rank"):
        export(dense, tmp_path / "a", format="peft")
    assert not (tmp_path / "a").exists()
    assert "is lost" in export(dense, tmp_path / "b", format="peft", rank=2).note
    export(dense, tmp_path / "c", format="peft", rank=32)
    adapted = PeftModel.from_pretrained(neox.twin(own=()), str(tmp_path / "c"))
    torch.testing.assert_close(
        adapted(input_ids=IDS).logits, _edited_logits(neox, dense), rtol=1e-3, atol=1e-3
    )


def test_the_wrong_base_is_refused(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    bundle = _bundle(neox, examples, corpus)
    neox.network.save_pretrained(tmp_path / "base")
    neox.tokenizer.save_pretrained(tmp_path / "base")
    other = load_model(str(tmp_path / "base"), dtype="bfloat16")
    with pytest.raises(BaseMismatch, match=r"made from tiny-gpt_neox .* cannot be used with"):
        export(bundle, tmp_path / "out", format="merged", model=other)
    assert not (tmp_path / "out").exists()


def test_damaged_bundles_are_named(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    folder = _bundle(neox, examples, corpus).save(tmp_path / "edit")
    with pytest.raises(ConfigError, match=r"is not a bundle: delta.json is missing"):
        Bundle.load(tmp_path / "absent")
    tensors = folder / "delta.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:50])
    with pytest.raises(ConfigError, match="is damaged"):
        Bundle.load(folder)
    tensors.write_bytes(whole)
    manifest = json.loads((folder / "delta.json").read_text())
    (folder / "delta.json").write_text(json.dumps(manifest | {"epsilon": 0.5}))
    with pytest.raises(ConfigError, match=r"is damaged: delta.json: no answer for epsilon 0.5"):
        Bundle.load(folder)
    (folder / "delta.json").write_text(json.dumps(manifest | {"schema_version": 2}))
    with pytest.raises(ConfigError, match="is damaged"):
        Bundle.load(folder)


def test_used_folders_and_unknown_formats_are_refused(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    bundle = _bundle(neox, examples, corpus)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        export(bundle, tmp_path / "used")
    with pytest.raises(ConfigError, match="No export format is called 'gguf'"):
        export(bundle, tmp_path / "new", format="gguf")


def test_an_export_in_another_form_is_measured_as_it_is_served(
    neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    half = LanguageModel(neox.network.to(torch.bfloat16), neox.tokenizer, id=neox.id)
    name = f"{half.architecture.mlp_modules(1)[0]}.weight"
    rows, columns = half.network.get_parameter(name).shape
    delta = WeightDelta({name: LowRank(torch.full((rows, 1), 1e-3), torch.ones(1, columns))})
    bundle = bundle_of(half, delta, editor="lora", hyperparameters={})
    asked: list[str] = []

    def certify(model: LanguageModel, served: Delta) -> Certificate:
        asked.append(served.form(model.network))
        meter = DeviationMeter(model, corpus, confidence=0.95, cache=Cache(tmp_path / "cache"))
        return meter.certify(served, 1e-3)

    as_judged = export(bundle, tmp_path / "peft", format="peft", model=half, certify=certify)
    assert (as_judged.certificate, asked) == (None, [])
    merged = export(bundle, tmp_path / "merged", format="merged", model=half, certify=certify)
    assert asked == ["merged:bfloat16"]
    assert merged.certificate is not None
    assert merged.certificate.form == "merged:bfloat16"
    assert "measured by itself" in (tmp_path / "merged" / "README.md").read_text()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    # The change is in the weights, rounded, though judging never wrote it there.
    weight = half.network.get_parameter(name)
    assert torch.equal(saved.get_parameter(name), (weight.float() + 1e-3).bfloat16())
    export(bundle, tmp_path / "unread", format="merged", model=half)
    assert "nobody has certified" in (tmp_path / "unread" / "README.md").read_text()
