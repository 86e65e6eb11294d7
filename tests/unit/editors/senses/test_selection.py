"""Which senses are chosen: the published scores, by loops over positions and by differences."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.sense_edits import random_senses
from tuner.backpack import BackpackForCausalLM, SenseOffsets
from tuner.editing.corpus import Corpus
from tuner.editing.likelihood import Continuation, block_losses, encode_example, success_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.editors.senses.selection import SenseSelection, background_of, select_senses
from tuner.files.cache import Cache

Scores = dict[tuple[int, int], float]


@pytest.fixture
def network(backpack: LanguageModel) -> BackpackForCausalLM:
    """A tiny Backpack whose attention prefers some places, so that ranks are clear."""
    assert isinstance(backpack.network, BackpackForCausalLM)
    with torch.no_grad():
        backpack.network.backpack.sense_weight_net.c_attn.weight.mul_(3.0)
    return backpack.network.double()


@pytest.fixture
def contrasts(examples: ExampleSet) -> ExampleSet:
    """The examples with contrasts: as long as the target, longer, and shorter."""
    texts = ((" Port Louis and", " a big town"), (" Lome", " Port Louis"), (" Santiago .", " big"))
    rows = [
        row.model_copy(update={"target": target, "contrast": contrast})
        for row, (target, contrast) in zip(examples.rows, texts, strict=True)
    ]
    return ExampleSet(loss=LossKind.PREFER, rows=tuple(rows))


def _of_kind(contrasts: ExampleSet, loss: LossKind) -> ExampleSet:
    return ExampleSet(loss=loss, rows=contrasts.rows)


@torch.no_grad()
def _attention(network: BackpackForCausalLM, text: Continuation) -> Scores:
    """Σ α_{tjℓ} over the places t that predict the target and the places j of each token."""
    alpha = network.backpack.contextualise(torch.tensor([text.ids])).weights()[0]
    found: Scores = {}
    for sense in range(network.config.num_senses):
        for predicting in range(text.start - 1, len(text.ids) - 1):
            for place in range(predicting + 1):
                pair = (text.ids[place], sense)
                found[pair] = found.get(pair, 0.0) + float(alpha[sense, predicting, place])
    return found


def _combined(
    network: BackpackForCausalLM, model: LanguageModel, row: Example, loss: LossKind
) -> Scores:
    encoded = encode_example(model, row)
    found = _attention(network, encoded.target)
    if loss.needs_contrast:
        assert encoded.contrast is not None
        sign = -1.0 if loss is LossKind.PREFER else 1.0
        for pair, weight in _attention(network, encoded.contrast).items():
            found[pair] = found.get(pair, 0.0) + sign * weight
    return found


def _best(scores: Scores, background: Tensor, weight: float, count: int) -> set[tuple[int, int]]:
    def rank(pair: tuple[int, int]) -> tuple[bool, float]:
        return scores[pair] <= 0, weight * float(background[pair]) - scores[pair]

    return set(sorted(scores, key=rank)[:count])


def _select(
    network: BackpackForCausalLM,
    model: LanguageModel,
    examples: ExampleSet,
    background: Tensor,
    *,
    count: int = 5,
    weight: float = 0.0,
    selection: SenseSelection = SenseSelection.ATTENTION,
) -> list[tuple[int, int]]:
    pairs = select_senses(
        network,
        model,
        examples,
        background,
        selection=selection,
        per_example=count,
        background_weight=weight,
    )
    return [(token, sense) for token, sense in pairs.tolist()]


@pytest.mark.parametrize("weight", [0.0, 3.0])
@pytest.mark.parametrize("loss", list(LossKind))
def test_attention_to_the_targets_decides(
    loss: LossKind,
    weight: float,
    backpack: LanguageModel,
    network: BackpackForCausalLM,
    contrasts: ExampleSet,
) -> None:
    random = torch.Generator().manual_seed(0)
    shape = (network.config.vocab_size, network.config.num_senses)
    background = torch.rand(shape, generator=random, dtype=torch.float64)
    examples = _of_kind(contrasts, loss)
    expected: set[tuple[int, int]] = set()
    for row in examples.rows:
        scores = _combined(network, backpack, row, loss)
        best = _best(scores, background, weight, 5)
        assert len(best) == 5
        expected |= best
    found = _select(network, backpack, examples, background, weight=weight)
    assert found == sorted(expected)


def test_general_use_counts_against_a_sense(
    backpack: LanguageModel, network: BackpackForCausalLM, examples: ExampleSet
) -> None:
    background = torch.zeros(network.config.vocab_size, network.config.num_senses)
    one = ExampleSet(loss=examples.loss, rows=examples.rows[:1])
    first = _select(network, backpack, one, background, count=3)
    background[tuple(torch.tensor(first).T)] = 1.0
    without = _select(network, backpack, one, background, count=3, weight=1000.0)
    assert not set(first) & set(without)
    # As many as asked for, even where every score is below zero, and no more than there are.
    assert len(_select(network, backpack, one, background + 1, count=7, weight=1e3)) == 7
    tokens = set(encode_example(backpack, one.rows[0]).target.ids[:-1])
    found = _select(network, backpack, one, background, count=10_000)
    assert found == sorted(itertools.product(tokens, range(network.config.num_senses)))


def test_each_example_gets_its_number_and_they_are_joined(
    backpack: LanguageModel, network: BackpackForCausalLM, examples: ExampleSet
) -> None:
    background = torch.zeros(network.config.vocab_size, network.config.num_senses)
    alone = [
        _select(network, backpack, ExampleSet(loss=examples.loss, rows=(row,)), background)
        for row in examples.rows
    ]
    assert [len(chosen) for chosen in alone] == [5, 5, 5]
    together = _select(network, backpack, examples, background)
    assert together == sorted(set(itertools.chain(*alone)))
    assert len(together) < 15, "the examples share words, so they must share senses here"


def test_senses_that_speak_for_the_contrast_come_last(
    backpack: LanguageModel, network: BackpackForCausalLM, contrasts: ExampleSet
) -> None:
    one = ExampleSet(loss=LossKind.PREFER, rows=contrasts.rows[:1])
    scores = _combined(network, backpack, one.rows[0], LossKind.PREFER)
    for_target = {pair for pair, raw in scores.items() if raw > 0}
    assert 0 < len(for_target) < len(scores)
    # Those for the target are far worse by their background, and still precede the others.
    background = torch.zeros(network.config.vocab_size, network.config.num_senses)
    for pair in for_target:
        background[pair] = 1.0
    count = len(for_target)
    found = _select(network, backpack, one, background, count=count, weight=1e6)
    assert set(found) == for_target
    more = _select(network, backpack, one, background, count=count + 2, weight=1e6)
    assert len(more) == count + 2
    assert set(more) > for_target


def test_single_tokens_are_told_apart_by_the_background_alone(
    backpack: LanguageModel, network: BackpackForCausalLM, examples: ExampleSet
) -> None:
    # One place predicts both target and contrast, so all that speaks for one does for the other.
    row = examples.rows[1].model_copy(update={"target": " Lome", "contrast": " Louis"})
    one = ExampleSet(loss=LossKind.PREFER, rows=(row,))
    encoded = encode_example(backpack, row)
    assert encoded.target.target_length == 1
    random = torch.Generator().manual_seed(0)
    background = torch.rand(network.config.vocab_size, network.config.num_senses, generator=random)
    pairs = itertools.product(set(encoded.target.ids[:-1]), range(network.config.num_senses))
    rarest = sorted(pairs, key=lambda pair: float(background[pair]))[:3]
    found = _select(network, backpack, one, background, count=3, weight=10.0)
    assert set(found) == set(rarest)


def test_the_background_is_the_mean_over_blocks(
    backpack: LanguageModel, network: BackpackForCausalLM, corpus: Corpus
) -> None:
    few = Corpus("few", corpus.blocks[:20])  # more than one batch
    found = background_of(network, backpack, few, SenseSelection.ATTENTION, None)
    expected = torch.zeros(network.config.vocab_size, network.config.num_senses)
    for block in few.blocks.tolist():
        for pair, weight in _attention(network, Continuation(tuple(block), 1)).items():
            expected[pair] += weight / len(few.blocks)
    torch.testing.assert_close(found, expected)
    # Every position but the last gives all of its weight away, for every sense.
    assert float(found.sum()) == pytest.approx(15 * network.config.num_senses, rel=1e-5)


def _slope(
    network: BackpackForCausalLM, pair: tuple[int, int], value: Callable[[], Tensor]
) -> float:
    """The derivative of `value()` by a factor on one sense of one token, at 1, by differences."""
    token, sense = pair
    vector = network.backpack.senses(torch.tensor(token))[sense]
    own = network.backpack.offsets
    sides = []
    for step in (1e-4, -1e-4):
        offsets = SenseOffsets(torch.tensor([pair]), step * vector[None], beneath=own)
        with network.backpack.with_offsets(offsets.requires_grad_(False)):
            sides.append(float(value()))
    return (sides[0] - sides[1]) / 2e-4


@torch.no_grad()
@pytest.mark.parametrize("own_offsets", [False, True])
@pytest.mark.parametrize("loss", list(LossKind))
def test_the_gradient_is_that_of_the_loss_by_a_factor_on_the_sense(
    loss: LossKind,
    own_offsets: bool,
    backpack: LanguageModel,
    network: BackpackForCausalLM,
    contrasts: ExampleSet,
) -> None:
    if own_offsets:
        random_senses(backpack, backpack.encode(contrasts.rows[0].prompt)).write(network)
    examples = ExampleSet(loss=loss, rows=contrasts.rows[:1])
    encoded = [encode_example(backpack, examples.rows[0])]
    tokens = set(encoded[0].target.ids[:-1])
    if loss.needs_contrast and encoded[0].contrast is not None:
        tokens |= set(encoded[0].contrast.ids[:-1])
    slopes = {
        pair: abs(
            _slope(network, pair, lambda: success_losses(network, loss, encoded, backpack.end_id))
        )
        for pair in itertools.product(sorted(tokens), range(network.config.num_senses))
    }
    ranked = sorted(slopes, key=lambda pair: -slopes[pair])
    background = torch.zeros(network.config.vocab_size, network.config.num_senses)
    for count in (1, 4, 9):
        chosen = _select(
            network, backpack, examples, background, count=count, selection=SenseSelection.GRADIENT
        )
        assert set(chosen) == set(ranked[:count])


@torch.no_grad()
def test_the_background_of_gradients_is_their_mean_size(
    backpack: LanguageModel, network: BackpackForCausalLM, corpus: Corpus
) -> None:
    few = Corpus("few", corpus.blocks[:2])
    found = background_of(network, backpack, few, SenseSelection.GRADIENT, None)
    places = ((0, 0, 1), (1, 7, 3), (0, 14, 0))
    checked = [(int(few.blocks[block, place]), sense) for block, place, sense in places]
    for pair in checked:
        sizes = [
            abs(_slope(network, pair, lambda block=block: block_losses(network, block[None])))
            for block in few.blocks
        ]
        assert float(found[pair]) == pytest.approx(sum(sizes) / 2, rel=1e-3, abs=1e-6)
        assert sum(sizes) > 0
    read = set(few.blocks[:, :-1].flatten().tolist())  # the last token predicts nothing
    assert {int(token) for token in found.any(dim=1).nonzero()} == read


@pytest.mark.parametrize("selection", list(SenseSelection))
def test_the_background_is_kept_under_all_that_it_depends_on(
    selection: SenseSelection, backpack: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    network = backpack.network
    assert isinstance(network, BackpackForCausalLM)
    cache = Cache(tmp_path)
    few, others = Corpus("few", corpus.blocks[:8]), Corpus("few", corpus.blocks[8:16])

    def background(model: LanguageModel, text: Corpus, kept: Cache | None) -> Tensor:
        return background_of(model.network, model, text, selection, kept)

    plain = background(backpack, few, None)
    assert torch.equal(background(backpack, few, cache), plain)
    (file,) = tmp_path.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert torch.equal(background(backpack, few, cache), plain)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(background(backpack, others, cache), background(backpack, others, None))
    twin = backpack.twin(own=("backpack.sense_weight_net.c_attn.weight",))
    with torch.no_grad():
        twin.backpack.sense_weight_net.c_attn.weight.mul_(5.0)
    changed = LanguageModel(twin, backpack.tokenizer, id=backpack.id)
    assert not torch.equal(background(changed, few, cache), plain)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
