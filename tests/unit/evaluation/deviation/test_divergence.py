import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.likelihood import token_divergences
from tuner.editing.model import LanguageModel
from tuner.evaluation.deviation.base_outputs import BaseOutputs
from tuner.evaluation.deviation.budget import Budget, Deviation, Divergence, Verdict
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.evaluation.deviation.scaling import StrengthSearch
from tuner.files.cache import Cache


def _corpus(model: LanguageModel, rows: int = 64) -> Corpus:
    random = torch.Generator().manual_seed(3)
    vocabulary = model.network.config.vocab_size
    return Corpus("random", torch.randint(0, vocabulary, (rows, 16), generator=random))


def _delta(model: LanguageModel, name: str, size: float) -> WeightDelta:
    weight = model.network.get_parameter(name)
    random = torch.Generator().manual_seed(0)
    return WeightDelta({name: Dense(size * torch.randn(weight.shape, generator=random))})


def _mlp(model: LanguageModel) -> str:
    return f"{model.architecture.mlp_modules(1)[0]}.weight"


@torch.no_grad()
def _expected(model: LanguageModel, delta: WeightDelta | SenseDelta, blocks: torch.Tensor) -> float:
    def read() -> torch.Tensor:
        return model.network(input_ids=blocks, use_cache=False).logits[:, :-1].double()

    base = read().log_softmax(-1)
    with model.edited(delta):
        edited = read().log_softmax(-1)
    return float(F.kl_div(edited, base, log_target=True, reduction="none").sum(-1).mean())


def test_divergence_is_the_mean_kl_of_base_and_edited_model(
    model: LanguageModel, tmp_path: Path
) -> None:
    corpus = _corpus(model)
    meter = DeviationMeter(model, corpus, confidence=0.95, cache=Cache(tmp_path))
    delta = _delta(model, _mlp(model), 0.1)
    measured = meter.measure(delta, (1e-9,)).divergence
    assert measured is not None
    blocks = corpus.blocks[: measured.tokens // 15]
    assert measured.estimate == pytest.approx(_expected(model, delta, blocks), rel=1e-3)
    assert 0 <= measured.lower < measured.estimate < measured.upper
    # Asked again, the base is known and only its output layer runs: nothing changes.
    assert meter.measure(delta, (1e-9,)).divergence == measured


def test_a_change_of_the_output_layer_is_held_against_the_old_one(
    neox: LanguageModel, tmp_path: Path
) -> None:
    corpus = _corpus(neox)
    meter = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    head = neox.network.get_output_embeddings().weight
    name = next(name for name, weight in neox.network.named_parameters() if weight is head)
    delta = _delta(neox, name, 0.05)
    for _ in range(2):
        measured = meter.measure(delta, (1e-9,)).divergence
        assert measured is not None
        blocks = corpus.blocks[: measured.tokens // 15]
        assert measured.estimate == pytest.approx(_expected(neox, delta, blocks), rel=1e-3)


def test_outputs_of_the_base_are_the_same_from_memory(neox: LanguageModel) -> None:
    outputs = BaseOutputs(neox.network, _corpus(neox).blocks, batch=8)
    first = outputs.logits(0, 8)
    calls: list[int] = []
    handle = neox.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(outputs.logits(0, 8), first)
    handle.remove()
    assert not calls


def test_a_model_that_does_more_than_its_output_layer_is_run_again(neox: LanguageModel) -> None:
    halved = neox.network.register_forward_hook(
        lambda _, __, output: type(output)(logits=output.logits / 2)
    )
    outputs = BaseOutputs(neox.network, _corpus(neox).blocks, batch=8)
    first = outputs.logits(0, 8)
    assert torch.equal(outputs.logits(0, 8), first)
    halved.remove()
    assert not torch.equal(outputs.logits(0, 8), first)


def test_tiny_divergences_are_not_lost_in_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(40, 1000, generator=random)
    moved = base + 1e-4 * torch.randn(40, 1000, generator=random)
    exact = F.kl_div(
        moved.double().log_softmax(-1),
        base.double().log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    assert (exact < 1e-8).all()
    torch.testing.assert_close(token_divergences(base, moved).double(), exact, rtol=2e-2, atol=0)


def test_predictions_far_apart_have_a_finite_divergence() -> None:
    base, edited = torch.zeros(2, 4), torch.zeros(2, 4)
    base[0, 0], edited[0, 1] = 500.0, 500.0
    base[1, 2] = -math.inf
    apart, excluded = token_divergences(base, edited).tolist()
    assert apart == pytest.approx(500.0)
    assert excluded == pytest.approx(math.log(4 / 3), rel=1e-5)


def _read(
    estimate: float, *, two_sided: bool = False, kl: float = 0.0, limit: float | None = None
) -> Deviation:
    return Deviation(
        estimate=estimate,
        standard_error=1e-6,
        lower=estimate - 1e-5,
        upper=estimate + 1e-5,
        tokens=1000,
        confidence=0.95,
        two_sided=two_sided,
        divergence=Divergence(
            estimate=kl, standard_error=0, lower=kl, upper=kl, tokens=1000, limit=limit
        ),
    )


def test_a_fall_of_the_loss_is_within_unless_both_sides_count() -> None:
    assert _read(-3e-3).verdict(1e-3) is Verdict.WITHIN
    both = _read(-3e-3, two_sided=True)
    assert both.verdict(1e-3) is both.leaning(1e-3) is Verdict.OVER
    assert not both.probably_within(1e-3)
    assert both.used(1e-3) == pytest.approx(3)
    assert _read(-5e-4, two_sided=True).verdict(1e-3) is Verdict.WITHIN
    assert _read(-1e-3, two_sided=True).verdict(1e-3) is Verdict.UNRESOLVED


def test_a_divergence_counts_where_it_has_a_limit() -> None:
    assert _read(0.0, kl=0.5).verdict(1e-3) is Verdict.WITHIN
    limited = _read(0.0, kl=0.5, limit=0.1)
    assert limited.verdict(1e-3) is limited.leaning(1e-3) is Verdict.OVER
    assert not limited.probably_within(1e-3)
    assert not limited.appears_within(1e-3)
    assert _read(0.0, kl=0.05, limit=0.1).used(1e-3) == pytest.approx(0.5)


def test_a_strength_is_fitted_to_the_limit_that_binds() -> None:
    # The loss falls all the way, and KL grows with the square of the strength.
    search = StrengthSearch(
        measure=lambda alpha, _: _read(-1e-3 * alpha, kl=0.4 * alpha**2, limit=0.1),
        seen={1.0: _read(-1e-3, kl=0.4, limit=0.1)},
    )
    fitted = search.largest(1e-3)
    assert fitted is not None
    assert 0.37 < fitted[0] <= 0.5


def test_a_search_with_a_limit_reads_until_the_divergence_is_placed(
    neox: LanguageModel, tmp_path: Path
) -> None:
    corpus = _corpus(neox, 640)
    delta = _delta(neox, _mlp(neox), 0.1)
    free = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    unlimited = free.measure(delta, (0.5,), sure=False)
    assert unlimited.divergence is not None
    truth = unlimited.divergence.estimate
    meters = {
        limit: DeviationMeter(
            neox, corpus, confidence=0.95, cache=Cache(tmp_path), divergence=limit
        ).measure(delta, (0.5,))
        for limit in (truth / 2, truth * 2, truth * 1.04)
    }
    low, high, near = meters.values()
    assert low.verdict(0.5) is Verdict.OVER
    assert high.verdict(0.5) is Verdict.WITHIN
    assert near.tokens > high.tokens
    assert near.divergence is not None
    assert near.divergence.tokens == near.tokens


def test_studies_of_old_keep_their_identity_and_their_files() -> None:
    assert Budget().model_dump() == {"epsilons": (1e-3, 1e-4, 1e-5), "confidence": 0.95}
    old = Deviation.none(0.95)
    assert set(old.model_dump()) == {
        "estimate", "standard_error", "lower", "upper", "tokens", "gradient_tokens", "confidence",
    }  # fmt: skip
