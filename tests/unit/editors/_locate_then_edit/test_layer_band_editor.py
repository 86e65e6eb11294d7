"""The mathematics of the methods that write into a band of layers, in float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tuner.editing.corpus import Corpus
from tuner.editing.model import LanguageModel
from tuner.editors._locate_then_edit.key_covariance import SecondMoment, second_moments
from tuner.editors._locate_then_edit.layer_band_editor import Factors, factored
from tuner.editors.alphaedit import AlphaEdit
from tuner.editors.emmet import Emmet
from tuner.editors.memit import Memit
from tuner.errors import EditError
from tuner.files.cache import Cache

D_IN, D_OUT, FACTS = 24, 10, 5


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def moment() -> SecondMoment:
    samples = _random(D_IN, 400, seed=1) * torch.logspace(-2, 1, D_IN, dtype=torch.float64)[:, None]
    return SecondMoment(samples @ samples.T / 400, tokens=400)


KEYS, RESIDUALS = _random(D_IN, FACTS, seed=2), _random(D_OUT, FACTS, seed=3)
EARLIER = _random(D_IN, 3, seed=4)
PROTECTED = EARLIER @ EARLIER.T


def _dense(change: Factors) -> Tensor:
    return change.left @ change.right


@pytest.mark.parametrize("protected", [None, PROTECTED])
@pytest.mark.parametrize("weight", [1e-2, 1.0, 1e4])
def test_memit_meets_the_normal_equations(
    moment: SecondMoment, weight: float, protected: Tensor | None
) -> None:
    change = _dense(Memit(covariance_weight=weight).solve(KEYS, RESIDUALS, protected, moment))
    c = moment.matrix + 1e-10 * moment.matrix.diagonal().mean() * torch.eye(D_IN)
    earlier = 0.0 if protected is None else protected
    left = change @ (weight * c + earlier + KEYS @ KEYS.T)
    assert torch.allclose(left, RESIDUALS @ KEYS.T, rtol=1e-8, atol=1e-8)


def test_memit_spares_what_was_edited_before(moment: SecondMoment) -> None:
    editor = Memit(covariance_weight=1e-3)
    careful = _dense(editor.solve(KEYS, RESIDUALS, PROTECTED, moment))
    careless = _dense(editor.solve(KEYS, RESIDUALS, None, moment))
    assert (careful @ EARLIER).norm() < (careless @ EARLIER).norm() / 10


def test_memit_without_resistance_is_emmet_without_regulariser(moment: SecondMoment) -> None:
    memit = _dense(Memit(covariance_weight=1e-9).solve(KEYS, RESIDUALS, None, moment))
    emmet = _dense(Emmet(regulariser=0.0).solve(KEYS, RESIDUALS, None, moment))
    assert torch.allclose(memit, emmet, rtol=1e-5, atol=1e-7)
    # Both say exactly what they should at the keys.
    assert torch.allclose(emmet @ KEYS, RESIDUALS, rtol=1e-8, atol=1e-8)


def test_one_fact_of_memit_is_written_in_the_known_share(moment: SecondMoment) -> None:
    key, residual = KEYS[:, :1], RESIDUALS[:, :1]
    change = _dense(Memit(covariance_weight=7.0).solve(key, residual, None, moment))
    kappa = float(key.T @ moment.solve(key))
    assert torch.allclose(change @ key, residual * kappa / (7.0 + kappa), rtol=1e-8)


def test_emmet_meets_its_definition(moment: SecondMoment) -> None:
    change = _dense(
        Emmet(regulariser=0.3, covariance_weight=2.0).solve(KEYS, RESIDUALS, None, moment)
    )
    inverse = torch.cholesky_inverse(moment.factor) / 2.0
    gram = KEYS.T @ inverse @ KEYS + 0.3 * torch.eye(FACTS)
    assert torch.allclose(change, RESIDUALS @ torch.linalg.solve(gram, KEYS.T @ inverse), rtol=1e-7)


def test_emmet_refuses_two_facts_with_one_key(moment: SecondMoment) -> None:
    twice = torch.cat([KEYS[:, :1], KEYS[:, :1]], dim=1)
    with pytest.raises(EditError, match="not independent"):
        Emmet(regulariser=0.0).solve(twice, RESIDUALS[:, :2], None, moment)


@pytest.mark.parametrize("protected", [None, PROTECTED])
def test_alphaedit_leaves_the_preserved_space_alone(
    moment: SecondMoment, protected: Tensor | None
) -> None:
    editor = AlphaEdit(null_share=0.5, regulariser=0.7)
    change = _dense(editor.solve(KEYS, RESIDUALS, protected, moment))
    directions = torch.linalg.eigh(moment.matrix).eigenvectors
    free, preserved = directions[:, : D_IN // 2], directions[:, D_IN // 2 :]
    assert (change @ preserved).abs().max() < 1e-10 * change.abs().max()
    # The published equation, with the projection written out.
    projection = free @ free.T
    earlier = 0.0 if protected is None else protected
    matrix = projection @ (KEYS @ KEYS.T + earlier) + 0.7 * torch.eye(D_IN, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, projection @ KEYS @ RESIDUALS.T).T
    assert torch.allclose(change, expected, rtol=1e-8, atol=1e-10)


def test_alphaedit_says_when_nothing_is_free(moment: SecondMoment) -> None:
    with pytest.raises(EditError, match="raise `threshold`"):
        AlphaEdit(threshold=1e-12).solve(KEYS, RESIDUALS, None, moment)


@pytest.mark.parametrize("facts", [3, 40])
@pytest.mark.parametrize("transposed", [False, True])
def test_factors_are_stored_as_they_are(facts: int, transposed: bool) -> None:
    change = Factors(_random(D_OUT, facts), _random(facts, D_IN, seed=5))
    stored = factored(change, transposed=transposed)
    assert stored.left.shape[1] == min(facts, D_OUT)
    shape = torch.Size((D_IN, D_OUT) if transposed else (D_OUT, D_IN))
    dense = stored.to_dense(shape)
    assert torch.allclose(dense.T if transposed else dense, _dense(change).float(), atol=1e-4)


def test_the_statistics_are_the_mean_outer_product(model: LanguageModel, corpus: Corpus) -> None:
    moment = second_moments(model, corpus, [1], None)[1]
    seen: list[Tensor] = []
    module = model.network.get_submodule(model.architecture.mlp_modules(1)[-1])
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        model.network(input_ids=corpus.blocks)
    handle.remove()
    keys = seen[0].reshape(-1, seen[0].shape[-1]).double()
    assert torch.allclose(moment.matrix, keys.T @ keys / len(keys), rtol=1e-4, atol=1e-6)
    assert moment.tokens == corpus.blocks.numel()


def test_too_little_text_is_refused_and_little_text_is_ridged() -> None:
    matrix = torch.eye(100, dtype=torch.float64)
    with pytest.raises(EditError, match="at least 100 tokens"):
        SecondMoment(matrix, tokens=99).solve(torch.ones(100, 1, dtype=torch.float64))
    with pytest.warns(UserWarning, match="few for 100 input dimensions"):
        solved = SecondMoment(matrix, tokens=200).solve(torch.ones(100, 1, dtype=torch.float64))
    assert torch.allclose(solved, torch.full_like(solved, 1 / 1.001))


def test_one_factor_and_one_spectrum_serve_every_trial(
    neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    first = second_moments(neox, corpus, [0, 1], cache)
    for moment in first.values():
        assert torch.allclose(moment.solve(moment.matrix), torch.eye(64).double(), atol=1e-3)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert {path.parent.name for path in files} == {"second_moment", "factor"}
    again = second_moments(neox, corpus, [1], cache)[1]
    assert torch.equal(again.factor, first[1].factor)
    rebuilt = again.spectrum.directions * again.spectrum.values @ again.spectrum.directions.T
    assert torch.allclose(rebuilt, again.matrix, atol=1e-12)
    kept = second_moments(neox, corpus, [1], cache)[1].spectrum
    assert torch.equal(kept.directions, again.spectrum.directions)
    # Other text has statistics of its own.
    other = Corpus("other", corpus.blocks[:50])
    assert not torch.equal(second_moments(neox, other, [1], cache)[1].matrix, again.matrix)


def test_directions_that_no_text_uses_are_ridged(corpus: Corpus) -> None:
    samples = _random(10, 400)
    samples[3:5] = 0
    dead = SecondMoment(samples @ samples.T / 400, tokens=400)
    assert torch.isfinite(dead.solve(_random(10, 2))).all()
    broken = SecondMoment(-torch.eye(10, dtype=torch.float64), tokens=400)
    with (
        pytest.warns(UserWarning, match="leaves input dimensions unused"),
        pytest.raises(EditError, match="singular"),
    ):
        broken.solve(_random(10, 2))
