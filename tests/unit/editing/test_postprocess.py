"""What makes a finished change smaller."""

import pytest
import torch

from tuner.editing.delta import Dense, LowRank, Rows, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.editing.postprocess import keep_largest, truncate_rank

NAME = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("share", [0.001, 0.2, 0.4, 1.0])
def test_the_share_with_the_largest_relative_change_stays(
    neox: LanguageModel, share: float
) -> None:
    weight = neox.network.get_parameter(NAME).detach()
    change = _random(*weight.shape)
    kept = keep_largest(WeightDelta({NAME: Dense(change)}), neox.network, share).changes[NAME]
    assert isinstance(kept, Dense)
    stays = kept.values != 0
    assert int(stays.sum()) == -int(-share * weight.numel() // 1)
    assert torch.equal(kept.values[stays], change[stays])
    relative = (change / weight).abs()
    if share < 1:
        assert relative[stays].min() >= relative[~stays].max()


def test_a_weight_of_zero_does_not_stop_the_count(neox: LanguageModel) -> None:
    with torch.no_grad():
        neox.network.get_parameter(NAME).zero_()
    change = LowRank(_random(32, 2), _random(2, 64))
    kept = keep_largest(WeightDelta({NAME: change}), neox.network, 0.25).changes[NAME]
    assert int((kept.to_dense(torch.Size((32, 64))) != 0).sum()) == 512


def test_changes_of_rows_keep_a_share_of_their_rows(neox: LanguageModel) -> None:
    rows = Rows(torch.tensor([3, 7]), _random(2, 64))
    kept = keep_largest(WeightDelta({NAME: rows}), neox.network, 0.5).changes[NAME]
    assert isinstance(kept, Rows)
    assert int((kept.values != 0).sum()) == 64


def test_truncation_is_the_nearest_change_of_its_rank(neox: LanguageModel) -> None:
    change = Dense(_random(32, 64))
    cut = truncate_rank(WeightDelta({NAME: change}), neox.network, 3).changes[NAME]
    assert isinstance(cut, LowRank)
    assert cut.left.shape == (32, 3)
    left = change.values - cut.to_dense(change.values.shape)
    sizes = torch.linalg.svdvals(change.values)
    assert float(left.norm()) == pytest.approx(float(sizes[3:].norm()), rel=1e-4)


def test_what_is_of_lower_rank_already_stays_as_it_is(neox: LanguageModel) -> None:
    bias = NAME.replace("weight", "bias")
    delta = WeightDelta({NAME: LowRank(_random(32, 2), _random(2, 64)), bias: Dense(_random(32))})
    cut = truncate_rank(delta, neox.network, 2)
    assert cut.changes[NAME] is delta.changes[NAME]
    assert cut.changes[bias] is delta.changes[bias]
