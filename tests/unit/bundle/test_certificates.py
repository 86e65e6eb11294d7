"""A certificate belongs to its tensors: what is forged, old or of another delta is not believed."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.bundles import bundle_of, look_up_delta
from tests.support.command_line import Run
from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.bundle.export import export
from tuner.bundle.export_card import statement_of
from tuner.editing.corpus import Corpus, GeneralText
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.evaluation.deviation.budget import Certificate, Deviation, Verdict
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.evaluation.identity import delta_hash
from tuner.files.cache import Cache, cache_folder
from tuner.testing.tiny_models import save_model

MATRIX = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"


def _delta(size: float = 1.0, seed: int = 0) -> WeightDelta:
    draw = torch.Generator().manual_seed(seed)
    left, right = torch.randn(32, 2, generator=draw), torch.randn(2, 64, generator=draw)
    return WeightDelta({MATRIX: LowRank(size * left, right)})


def _certificate(bundle: Bundle, **changes: object) -> Certificate:
    """A sound certificate of a bundle, but for `changes`."""
    deviation = {
        "estimate": 2e-4,
        "standard_error": 1e-5,
        "lower": 1e-4,
        "upper": 3e-4,
        "tokens": 40_000,
        "confidence": 0.95,
    }
    for name in deviation.keys() & changes.keys():
        deviation[name] = changes.pop(name)  # type: ignore[assignment]
    settings: dict[str, object] = {
        "epsilon": 1e-3,
        "verdict": Verdict.WITHIN,
        "deviation": Deviation.model_validate(deviation),
        "corpus": "fresh text",
        "corpus_hash": "0",
        "delta_hash": bundle.stored.delta_hash,
        "base_fingerprint": bundle.manifest.base_fingerprint,
    }
    return Certificate.model_validate({**settings, **changes})


def _with(bundle: Bundle, certificate: Certificate) -> Bundle:
    return Bundle(bundle.delta, bundle.manifest.model_copy(update={"certificate": certificate}))


def test_a_certificate_names_the_delta_the_base_and_the_text(
    neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    bundle = bundle_of(neox, _delta())
    meter = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(cache_folder()))
    certificate = meter.certify(bundle.delta, 1e-3)
    assert certificate.delta_hash == bundle.stored.delta_hash == delta_hash(bundle.delta)
    assert certificate.base_fingerprint == neox.fingerprint
    assert certificate.corpus_hash == corpus.hash
    # The disk changes nothing of that.
    loaded = StoredBundle.load(_with(bundle, certificate).save(tmp_path / "edit"))
    assert loaded.manifest.certificate == certificate
    assert loaded.doubt(certificate) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"verdict": Verdict.UNRESOLVED}, None),
        ({"verdict": Verdict.OVER, "lower": 2e-3, "estimate": 3e-3, "upper": 4e-3}, None),
        ({"delta_hash": None}, "does not name the delta"),
        ({"base_fingerprint": None}, "does not name the delta"),
        ({"delta_hash": "0" * 64}, "made for another delta"),
        ({"base_fingerprint": "0" * 64}, "with another base model"),
        ({"upper": 2e-3}, "figures say unresolved, not within"),
        ({"lower": 2e-3, "estimate": 3e-3, "upper": 4e-3}, "figures say over, not within"),
        ({"verdict": Verdict.OVER}, "figures say within, not over"),
        ({"lower": 1e-3}, "do not fit together"),
        ({"tokens": 1000}, "rests on 1,000 tokens"),
    ],
)
def test_a_certificate_is_believed_only_where_hashes_and_figures_bear_it_out(
    neox: LanguageModel, changes: dict[str, object], words: str | None
) -> None:
    bundle = bundle_of(neox, _delta())
    certificate = _certificate(bundle, **changes)
    doubt = bundle.stored.doubt(certificate)
    assert (doubt is None) if words is None else (words in str(doubt))
    statement = statement_of(bundle.stored, certificate)
    assert ("Unverified" in statement) == (words is not None)


def test_what_stands_beside_the_tensors_is_part_of_the_delta(
    neox: LanguageModel, tmp_path: Path
) -> None:
    bundle = bundle_of(neox, look_up_delta(target=3))
    certificate = _certificate(bundle)
    assert bundle.stored.doubt(certificate) is None
    same_tensors = bundle_of(neox, look_up_delta(target=4))
    assert same_tensors.stored.tensors_hash == bundle.stored.tensors_hash
    assert "another delta" in str(same_tensors.stored.doubt(certificate))


def test_a_fresh_certificate_replaces_contradicts_or_stands_beside(neox: LanguageModel) -> None:
    bundle = bundle_of(neox, _delta())
    strict = _certificate(bundle, epsilon=5e-4)
    loose = _certificate(bundle, epsilon=1e-2)
    forged = _certificate(bundle, confidence=0.99999)
    manifest = bundle.manifest.model_copy(
        update={"certificate": forged, "further_certificates": (strict, loose)}
    )
    over = _certificate(
        bundle, verdict=Verdict.OVER, lower=2e-3, estimate=3e-3, upper=4e-3, corpus="mine"
    )
    changed, told = Bundle(bundle.delta, manifest).stored.certified(over)
    # Over 1e-3 is over 5e-4 as well, and says nothing of 1e-2.
    assert changed.manifest.certificate == over
    assert changed.manifest.further_certificates == (loose,)
    contradicted = [line for line in told if "contradicts" in line]
    assert len(contradicted) == 2
    assert "within for ε=0.001 at 0.99999 confidence" in contradicted[0]
    # For another budget than the bundle's it stands beside the bundle's own.
    beside, told = Bundle(bundle.delta, manifest).stored.certified(
        _certificate(bundle, epsilon=2e-3)
    )
    assert beside.manifest.certificate == forged
    assert [one.epsilon for one in beside.manifest.further_certificates] == [2e-3, 5e-4, 1e-2]
    assert told == ()


def _forge(folder: Path, **certificate: object) -> None:
    manifest = json.loads((folder / "delta.json").read_text())
    manifest["certificate"] |= certificate
    (folder / "delta.json").write_text(json.dumps(manifest))


def test_a_forged_certificate_does_not_survive_the_user_s_own(
    neox: LanguageModel, general: GeneralText, tmp_path: Path, run: Run
) -> None:
    neox.id = save_model(neox, tmp_path / "base")
    made = bundle_of(neox, _delta(size=100.0))
    folder = _with(made, _certificate(made, confidence=0.99999)).save(tmp_path / "edit")
    (folder / "notes.txt").write_text("mine")
    link = tmp_path / "linked"
    link.symlink_to(folder)
    tensors = (folder / "delta.safetensors").read_bytes()
    text = str(tmp_path / "general.jsonl")
    code, _, err = run("certify", str(link), "--general", text, "--device", "cpu")
    said = " ".join(err.split())
    assert code == 1, said
    assert "This contradicts the bundle's certificate, which says within for ε=0.001" in said
    kept = StoredBundle.load(folder)
    assert kept.manifest.certificate is not None
    assert kept.manifest.certificate.verdict is Verdict.OVER
    assert kept.doubt(kept.manifest.certificate) is None
    assert link.is_symlink()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "delta.safetensors").read_bytes() == tensors
    export(kept, tmp_path / "adapter", format="peft")
    assert "**over**" in (tmp_path / "adapter" / "README.md").read_text()


def test_an_old_or_foreign_certificate_is_called_unverified(
    neox: LanguageModel, tmp_path: Path, run: Run
) -> None:
    made = bundle_of(neox, _delta())
    folder = _with(made, _certificate(made)).save(tmp_path / "edit")
    code, _, err = run("export", str(folder), str(tmp_path / "sound"))
    assert (code, err) == (0, "")
    assert "Certificate for ε = 0.001: **within**" in (tmp_path / "sound/README.md").read_text()
    _forge(folder, delta_hash=None, base_fingerprint=None)
    code, _, err = run("export", str(folder), str(tmp_path / "old"))
    assert code == 0
    assert "is unverified: it does not name the delta" in " ".join(err.split())
    card = (tmp_path / "old" / "README.md").read_text()
    assert "- **Unverified** certificate: it does not name the delta" in card
    _forge(folder, delta_hash="f" * 64, base_fingerprint=neox.fingerprint)
    code, _, err = run("export", str(folder), str(tmp_path / "foreign"))
    assert "is unverified: it was made for another delta" in " ".join(err.split())
