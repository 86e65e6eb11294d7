"""Deviation of sense edits: the plain forward's figures, read only where they can differ."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.sense_edits import random_senses
from tuner.backpack import BackpackForCausalLM, ContextualisationCache
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.likelihood import block_losses
from tuner.editing.model import LanguageModel
from tuner.errors import EditError
from tuner.evaluation.deviation.budget import Verdict
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.evaluation.deviation.senses import SenseDeviation
from tuner.files.cache import Cache

# No token of a random block.
RARE = 300


@pytest.fixture
def network(backpack: LanguageModel) -> BackpackForCausalLM:
    assert isinstance(backpack.network, BackpackForCausalLM)
    return backpack.network


def _meter(
    model: LanguageModel, corpus: Corpus, folder: Path, *, memory: bool, batch: int = 128
) -> DeviationMeter:
    """A meter that reads edits of senses with memory, or as it reads any edit."""
    network = model.twin(own=())
    assert isinstance(network, BackpackForCausalLM)
    of_its_own = LanguageModel(network, model.tokenizer, id=model.id)
    network.backpack.memory = ContextualisationCache() if memory else None
    cache = Cache(folder / str(memory))
    tokens = batch * corpus.blocks.shape[1]
    return DeviationMeter(of_its_own, corpus, confidence=0.95, cache=cache, tokens_per_batch=tokens)


def _text(blocks: int, *, every: int) -> Corpus:
    """Random blocks of which one in `every` holds the rare token, at any place but the last."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (blocks, 16), generator=random)
    for block in range(0, blocks, every):
        ids[block, int(torch.randint(0, 15, (1,), generator=random))] = RARE
    return Corpus("random", ids)


def _plain_rises(model: LanguageModel, delta: SenseDelta, blocks: Tensor) -> Tensor:
    base = block_losses(model.network, blocks)
    with model.edited(delta):
        return block_losses(model.network, blocks) - base


@pytest.mark.parametrize("batch", [128, 24, 7])
def test_memory_changes_no_figure(batch: int, backpack: LanguageModel, tmp_path: Path) -> None:
    backpack.network.double()
    corpus = _text(160, every=3)
    reused = _meter(backpack, corpus, tmp_path, memory=True, batch=batch)
    plain = _meter(backpack, corpus, tmp_path, memory=False, batch=batch)
    for seed, tokens in enumerate(([RARE], [RARE, 3, 77, 200], list(range(0, 256, 5)))):
        delta = random_senses(backpack, tokens, size=0.3, seed=seed)
        found, expected = (meter.measure(delta, (1e-9,), least=1000) for meter in (reused, plain))
        assert found.tokens == expected.tokens == corpus.predicted_tokens
        assert expected.estimate != 0
        for name in ("estimate", "standard_error", "lower", "upper"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)


def test_in_single_precision_it_differs_by_rounding(
    backpack: LanguageModel, tmp_path: Path
) -> None:
    corpus = _text(160, every=3)
    reused, plain = (_meter(backpack, corpus, tmp_path, memory=memory) for memory in (True, False))
    for seed in range(3):
        delta = random_senses(backpack, [RARE, 3, 77], seed=seed)
        found, expected = (meter.measure(delta, (1e-9,), least=1000) for meter in (reused, plain))
        assert found.estimate == pytest.approx(expected.estimate, abs=1e-7)
        assert abs(expected.estimate) > 1e-4


def test_rises_are_those_of_the_plain_forward_in_any_range(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    network.double()
    blocks = _text(50, every=2).blocks
    delta = random_senses(backpack, [RARE, 5, 9])
    expected = _plain_rises(backpack, delta, blocks)
    reading = SenseDeviation(network, blocks, batch=12)
    for rows in (range(50), range(20), range(20, 37), range(37, 50), range(49, 50)):
        found = reading.changes(delta, rows).losses
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, expected[rows.start : rows.stop])


def test_a_block_without_an_edited_token_changes_by_exactly_zero(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    blocks = _text(40, every=4).blocks
    # The last token of a block predicts nothing within it.
    blocks[1, -1] = RARE
    delta = random_senses(backpack, [RARE])
    reading = SenseDeviation(network, blocks, batch=16)
    rises = reading.changes(delta, range(40)).losses
    holds = torch.arange(40) % 4 == 0
    assert (rises[~holds] == 0.0).all()
    assert (rises[holds] != 0.0).all()
    assert torch.equal(delta.can_change(blocks), holds)
    assert (reading.changes(random_senses(backpack, [310]), range(40)).losses == 0.0).all()
    assert (reading.changes(delta.scaled(0.0), range(40)).losses.abs() < 1e-5).all()


def test_only_positions_from_the_first_edited_token_on_are_read(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (8, 16), generator=random)
    blocks[torch.arange(6), torch.arange(2, 14, 2)] = RARE
    delta = random_senses(backpack, [RARE])
    reading = SenseDeviation(network, blocks, batch=8)
    rises = reading.changes(delta, range(8)).losses
    # Were the losses before it read at all, this would show.
    for block, place in enumerate(range(2, 14, 2)):
        reading._base[0][block, :place] = torch.nan
    reading._base[0][6:] = torch.nan
    assert torch.equal(reading.changes(delta, range(8)).losses, rises)
    reading._base[0][0, 2] = torch.nan
    assert torch.isnan(reading.changes(delta, range(8)).losses[0])


def test_without_room_to_remember_it_says_the_same(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    blocks = _text(40, every=2).blocks
    delta = random_senses(backpack, [RARE])
    expected = SenseDeviation(network, blocks, batch=8).changes(delta, range(40)).losses
    memory = network.backpack.memory = ContextualisationCache(most_bytes=0)
    reading = SenseDeviation(network, blocks, batch=8)
    for _ in range(2):
        assert torch.equal(reading.changes(delta, range(40)).losses, expected)
    assert not memory.kept


def test_the_transformer_runs_once_per_batch(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    blocks = _text(40, every=1).blocks
    runs: list[int] = []
    network.backpack.gpt2_model.register_forward_hook(lambda *_: runs.append(1))
    reading = SenseDeviation(network, blocks, batch=8)
    for seed in range(3):
        reading.changes(random_senses(backpack, [RARE], seed=seed), range(40))
    assert len(runs) == 5


def test_within_is_not_said_before_128_blocks_that_can_change(
    backpack: LanguageModel, tmp_path: Path
) -> None:
    corpus = _text(640, every=4)
    delta = random_senses(backpack, [RARE], size=1e-3)
    reused = _meter(backpack, corpus, tmp_path, memory=True)
    found = reused.measure(delta, (0.1,))
    assert found.verdict(0.1) is Verdict.WITHIN
    # The 128th block with the token is number 509; a reading goes on in steps of 32.
    assert found.tokens == 512 * 15
    assert reused.measure(delta, (0.1,), least=20).tokens == 96 * 15
    # How the text is read makes no difference to how much of it is.
    plain = _meter(backpack, corpus, tmp_path, memory=False).measure(delta, (0.1,))
    assert plain.tokens == found.tokens


def test_within_may_be_said_of_the_whole_corpus(backpack: LanguageModel, tmp_path: Path) -> None:
    corpus = _text(200, every=4)
    meter = _meter(backpack, corpus, tmp_path, memory=True)
    found = meter.measure(random_senses(backpack, [RARE], size=1e-3), (0.1,))
    assert found.tokens == corpus.predicted_tokens
    assert found.verdict(0.1) is Verdict.WITHIN


def test_what_hardly_any_block_holds_is_not_within_a_tight_budget(
    backpack: LanguageModel, tmp_path: Path
) -> None:
    corpus = _text(200, every=100)
    meter = _meter(backpack, corpus, tmp_path, memory=True)
    rare, absent = random_senses(backpack, [RARE], size=3.0), random_senses(backpack, [310])
    seen = meter.measure(rare, (1e-3,))
    # Two blocks with the token may as well have been six.
    rises = SenseDeviation(backpack.network, corpus.blocks, 8).changes(rare, range(200)).losses
    total = float(block_losses(backpack.network, corpus.blocks).sum())
    assert seen.upper == pytest.approx(6.296 * float(rises.abs().max()) / total, rel=1e-3)
    # None with it says no more than that fewer than three in two hundred are lost in full.
    found = meter.measure(absent, (1e-3,))
    assert (found.estimate, found.standard_error) == (0.0, 0.0)
    assert found.upper == pytest.approx(2.996 / 200, rel=1e-3)
    assert found.verdict(1e-3) is Verdict.UNRESOLVED
    assert found.verdict(0.1) is Verdict.WITHIN


def test_over_is_said_as_soon_as_it_is_seen(backpack: LanguageModel, tmp_path: Path) -> None:
    corpus = _text(640, every=4)
    meter = _meter(backpack, corpus, tmp_path, memory=True)
    found = meter.measure(random_senses(backpack, [RARE], size=30.0), (1e-3,))
    assert found.verdict(1e-3) is Verdict.OVER
    assert found.tokens < 512 * 15


def test_a_model_with_offsets_of_its_own_is_read_as_any_other(
    backpack: LanguageModel, tmp_path: Path
) -> None:
    backpack.network.double()
    corpus = _text(96, every=2)
    edited = backpack.after(random_senses(backpack, [RARE, 5], seed=1))
    delta = random_senses(backpack, [RARE, 9])
    meter = DeviationMeter(edited, corpus, confidence=0.95, cache=Cache(tmp_path))
    found = meter.measure(delta, (1e-9,), least=1000)
    rises = _plain_rises(edited, delta, corpus.blocks)
    base = block_losses(edited.network, corpus.blocks)
    assert found.estimate == pytest.approx(float(rises.sum() / base.sum()), rel=1e-6)


def test_nan_is_an_edit_error(backpack: LanguageModel, tmp_path: Path) -> None:
    delta = random_senses(backpack, [RARE]).scaled(float("nan"))
    meter = _meter(backpack, _text(96, every=4), tmp_path, memory=True)
    with pytest.raises(EditError, match="NaN or infinite"):
        meter.measure(delta, (1e-3,))
