"""Deviation: paired, sequential, cached, with a floor."""

from pathlib import Path

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.generation import generate_greedily
from tuner.editing.likelihood import block_losses
from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError, EditError
from tuner.evaluation.deviation.budget import Budget, Deviation, Verdict
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.files.cache import Cache


def _noise(model: LanguageModel, size: float) -> WeightDelta:
    name = f"{model.architecture.mlp_modules(1)[0]}.weight"
    weight = model.network.get_parameter(name)
    random = torch.Generator().manual_seed(0)
    return WeightDelta({name: Dense(size * torch.randn(weight.shape, generator=random))})


@pytest.fixture
def meter(neox: LanguageModel, corpus: Corpus, tmp_path: Path) -> DeviationMeter:
    return DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))


def test_without_a_gradient_the_estimate_is_the_ratio_of_sums(
    model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    meter = DeviationMeter(model, corpus, confidence=0.95, cache=Cache(tmp_path / "other"))
    delta = _noise(model, 0.3)
    found = meter.measure(delta, (1e-9,))
    blocks = corpus.blocks[: found.tokens // (corpus.blocks.shape[1] - 1)]
    assert found.estimate == pytest.approx(_true_rise(model, delta, blocks), rel=1e-4)
    assert found.lower < found.estimate < found.upper


def _true_rise(model: LanguageModel, delta: WeightDelta, blocks: torch.Tensor) -> float:
    base = block_losses(model.network, blocks).sum()
    with model.edited(delta):
        edited = block_losses(model.network, blocks).sum()
    return float(edited / base) - 1


def test_nothing_deviates_by_nothing(meter: DeviationMeter) -> None:
    found = meter.measure(WeightDelta({}), (1e-5,))
    assert (found.estimate, found.standard_error) == (0.0, 0.0)
    assert found.verdict(1e-5) is Verdict.WITHIN


def test_a_clear_case_stops_early(neox: LanguageModel, tmp_path: Path) -> None:
    # What the model says itself is what it knows best: any noise makes that worse.
    said = [[token, *generate_greedily(neox, [[token]], 15)[0]] for token in range(40, 240)]
    corpus = Corpus("its own words", torch.tensor([block for block in said if len(block) == 16]))
    meter = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    found = meter.measure(_noise(neox, 1.0), (1e-3,))
    assert found.verdict(1e-3) is Verdict.OVER
    assert found.tokens < corpus.predicted_tokens


def test_cached_base_losses_give_the_same_and_are_keyed_by_the_weights(
    neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    delta = _noise(neox, 0.1)
    first = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    fresh = first.measure(delta, (1e-3,))
    cached = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    assert cached.measure(delta, (1e-3,)) == fresh
    assert len(list(tmp_path.glob("base_losses/*.safetensors"))) == 1
    twin = neox.twin(own=dict(neox.network.named_parameters()))
    with torch.no_grad():
        next(twin.parameters()).mul_(1.01)
    other = LanguageModel(twin, neox.tokenizer, id=neox.id)
    meter = DeviationMeter(other, corpus, confidence=0.95, cache=Cache(tmp_path))
    assert meter.measure(WeightDelta({}), (1e-3,)).estimate == 0.0
    assert len(list(tmp_path.glob("base_losses/*.safetensors"))) == 2


def test_a_damaged_cache_is_a_miss(neox: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path)).measure(
        WeightDelta({}), (1e-3,)
    )
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    again = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    assert again.measure(WeightDelta({}), (1e-3,)).estimate == 0.0


def test_budgets_below_the_floor_are_refused(
    neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    neox.network.to(torch.bfloat16)
    meter = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    # The same kernels run on the same weights show nothing: what rounding can do must be provoked.
    assert meter.measure(WeightDelta({}), (1e-3,)).estimate == 0.0
    with pytest.raises(ConfigError, match=r"1e-05 is below the noise floor .* bfloat16"):
        meter.check_budget(Budget())
    meter.check_budget(Budget(epsilons=(1e-2,)))


def test_nan_is_an_edit_error(meter: DeviationMeter, neox: LanguageModel) -> None:
    with pytest.raises(EditError, match="NaN or infinite"):
        meter.measure(_noise(neox, float("nan")), (1e-3,))
    neox.check_unchanged()


def test_certificate_needs_enough_text_and_names_it(
    meter: DeviationMeter, neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    # Ninety-six blocks show no deviation, and still are too few to rely on.
    assert meter.certify(WeightDelta({}), 1e-4).verdict is Verdict.UNRESOLVED
    long = Corpus("long", corpus.blocks.repeat(24, 1))
    meter = DeviationMeter(neox, long, confidence=0.95, cache=Cache(tmp_path))
    certificate = meter.certify(WeightDelta({}), 1e-4)
    assert certificate.holds
    assert certificate.corpus_hash == long.hash


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [(0.0, 1e-4, "within"), (2e-4, 3e-4, "over"), (0.0, 2e-4, "unresolved")],
)
def test_verdicts(lower: float, upper: float, verdict: str) -> None:
    deviation = Deviation(
        estimate=(lower + upper) / 2,
        standard_error=1e-5,
        lower=lower,
        upper=upper,
        tokens=10,
        confidence=0.95,
    )
    assert deviation.verdict(1e-4) == verdict


@pytest.mark.parametrize("epsilons", [(), (0.0,), (-1e-3,), (1.0,), (1e-3, 1e-3)])
def test_impossible_budgets_are_refused(epsilons: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"epsilon|differ"):
        Budget(epsilons=epsilons)
