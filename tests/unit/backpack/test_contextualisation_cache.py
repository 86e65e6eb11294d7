"""Exact reuse: what memory gives is what the plain forward gives, and it is never stale."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.sense_edits import random_senses
from tuner.backpack import BackpackForCausalLM, ContextualisationCache, SenseOffsets, texts_recur
from tuner.deltas.senses import SenseDelta
from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.likelihood import Continuation, block_losses, continuation_losses
from tuner.editing.model import LanguageModel

IDS = torch.arange(60, 108).reshape(4, 12)


@pytest.fixture
def network(backpack: LanguageModel) -> BackpackForCausalLM:
    """A tiny Backpack with a memory, in double precision so that equal means equal."""
    assert isinstance(backpack.network, BackpackForCausalLM)
    return backpack.network.double()


def _memory(network: BackpackForCausalLM) -> ContextualisationCache:
    memory = network.backpack.memory
    assert memory is not None
    return memory


@torch.no_grad()
def _plain(
    network: BackpackForCausalLM, ids: Tensor = IDS, mask: Tensor | None = None, keep: int = 0
) -> Tensor:
    memory, network.backpack.memory = network.backpack.memory, None
    try:
        return _logits(network, ids, mask, keep)
    finally:
        network.backpack.memory = memory


@torch.no_grad()
def _logits(
    network: BackpackForCausalLM,
    ids: Tensor = IDS,
    mask: Tensor | None = None,
    keep: int | Tensor = 0,
) -> Tensor:
    with texts_recur():
        read = network(ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
    logits: Tensor = read.logits
    return logits


# Tokens of one row, of all rows, at the first and the last place, and of none.
EDITED = ([75], [60, 72, 84, 96], [71, 83, 90], [61, 62, 63, 101], [200])


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_reuse_equals_the_plain_forward(
    size: float, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    base = _plain(network)
    for seed, tokens in enumerate(EDITED):
        delta = random_senses(backpack, tokens, size=size, seed=seed)
        with backpack.edited(delta):
            expected, found = _plain(network), _logits(network)
        torch.testing.assert_close(found, expected)
        assert torch.equal(expected, base) == (tokens == [200])
    assert len(_memory(network).kept) == 1


def test_without_double_precision_it_differs_by_rounding(backpack: LanguageModel) -> None:
    network = backpack.network
    assert isinstance(network, BackpackForCausalLM)
    with backpack.edited(random_senses(backpack, [62, 75, 76])):
        expected, found = _plain(network).log_softmax(-1), _logits(network).log_softmax(-1)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(
    side: str, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    mask = torch.ones_like(IDS)
    mask[1, slice(0, 5) if side == "left" else slice(7, 12)] = 0
    mask[3, slice(0, 11) if side == "left" else slice(1, 12)] = 0
    # An edited token at every place, padding included.
    with backpack.edited(random_senses(backpack, IDS.flatten().tolist())):
        expected, found = _plain(network, mask=mask), _logits(network, mask=mask)
        unpadded = _logits(network)
    assert torch.isfinite(found).all()
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real])
    torch.testing.assert_close(found[[0, 2]], unpadded[[0, 2]])
    assert not torch.allclose(found[1], unpadded[1])


@pytest.mark.parametrize("keep", [1, 5, torch.tensor([0, 3, 4]), torch.tensor([11])])
def test_some_positions_only(
    keep: int | Tensor, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    with backpack.edited(random_senses(backpack, [60, 74, 90])):
        places = slice(-keep, None) if isinstance(keep, int) else keep
        expected = _plain(network)[:, places]
        for _ in range(2):
            torch.testing.assert_close(_logits(network, keep=keep), expected)
        torch.testing.assert_close(_logits(network), _plain(network))


def test_many_batches_are_told_apart(backpack: LanguageModel, network: BackpackForCausalLM) -> None:
    # The same tokens in another shape, order or mask are another text.
    half = torch.ones_like(IDS)
    half[:, 6:] = 0
    batches = [(IDS, None), (IDS.reshape(2, 24), None), (IDS.flip(0), None), (IDS, half)]
    for seed in range(2):
        with backpack.edited(random_senses(backpack, [60, 75, 90], seed=seed)):
            for ids, mask in batches:
                real = torch.ones_like(ids) if mask is None else mask
                found, expected = _logits(network, ids, mask), _plain(network, ids, mask)
                torch.testing.assert_close(found[real.bool()], expected[real.bool()])
    assert len(_memory(network).kept) == len(batches)


def test_a_position_that_must_not_be_seen_may_weigh_anything(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    # Scores so far apart that the exponential of what lies ahead would be infinite.
    with torch.no_grad():
        network.backpack.sense_weight_net.c_attn.weight.mul_(1e4)
    with backpack.edited(random_senses(backpack, IDS.flatten().tolist())):
        expected, found = _plain(network), _logits(network)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected)


def test_a_model_with_offsets_of_its_own_is_read_whole(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    after = backpack.after(random_senses(backpack, [62, 75]))
    assert isinstance(after.network, BackpackForCausalLM)
    torch.testing.assert_close(_logits(after.network), _plain(after.network))
    with after.edited(random_senses(backpack, [62, 90], seed=1)):
        torch.testing.assert_close(_logits(after.network), _plain(after.network))
    assert not torch.allclose(_logits(after.network), _plain(network))


def test_offsets_over_others_are_read_whole(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    one, other = (random_senses(backpack, [62, 75], seed=seed) for seed in (0, 1))
    below = SenseOffsets(one.pairs, one.vectors.double())
    above = SenseOffsets(other.pairs, other.vectors.double(), beneath=below)
    with network.backpack.with_offsets(above):
        found, expected = _logits(network), _plain(network)
    torch.testing.assert_close(found, expected)
    with backpack.edited(one.plus(other)):
        torch.testing.assert_close(_logits(network), expected)


def test_with_gradients_and_without_they_say_the_same(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    delta = random_senses(backpack, [62, 75])
    offsets = SenseOffsets(delta.pairs, delta.vectors.double())
    with network.backpack.with_offsets(offsets):
        logits = network(IDS, use_cache=False).logits
        torch.testing.assert_close(_logits(network), logits.detach())
        logits.sum().backward()
    assert offsets.vectors.grad is not None
    assert (offsets.vectors.grad != 0).any(dim=1).all()


def _in_place(network: BackpackForCausalLM) -> None:
    with torch.no_grad():
        network.backpack.gpt2_model.h[1].mlp.c_fc.weight.mul_(1.5)


def _other_object(network: BackpackForCausalLM) -> None:
    layer = network.backpack.sense_network.final_mlp.c_proj
    layer.weight = nn.Parameter(1.5 * layer.weight.detach())


def _other_numbers(network: BackpackForCausalLM) -> None:
    weight = network.backpack.gpt2_model.wte.weight
    weight.data = 1.5 * weight.data


def _other_precision(network: BackpackForCausalLM) -> None:
    network.to(torch.bfloat16)


def _weights_loaded(network: BackpackForCausalLM) -> None:
    network.load_state_dict({name: 1.1 * w for name, w in network.state_dict().items()})


@pytest.mark.parametrize(
    "change", [_in_place, _other_object, _other_numbers, _other_precision, _weights_loaded]
)
def test_a_changed_weight_is_noticed(
    change: Callable[[BackpackForCausalLM], None],
    backpack: LanguageModel,
    network: BackpackForCausalLM,
) -> None:
    delta = random_senses(backpack, [62, 75])
    with backpack.edited(delta):
        before = _logits(network)
    change(network)
    with backpack.edited(delta):
        expected, found = _plain(network), _logits(network)
    assert found.dtype is expected.dtype
    tolerance = 0.1 if found.dtype is torch.bfloat16 else 1e-9
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert not torch.equal(found.double(), before)


def test_an_edit_of_weights_is_noticed_and_so_is_its_end(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    name = f"{backpack.architecture.mlp_modules(1)[0]}.weight"
    shape = network.get_parameter(name).shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weights = WeightDelta({name: Dense(change)})
    with backpack.edited(random_senses(backpack, [62, 75])):
        before = _logits(network)
        with backpack.edited(weights):
            torch.testing.assert_close(_logits(network), _plain(network))
            assert not torch.allclose(_logits(network), before)
        assert torch.equal(_logits(network), before)


def test_what_it_gives_is_not_spoilt_by_later_edits(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    delta = random_senses(backpack, [62, 75, 90])
    with backpack.edited(delta):
        first = _logits(network)
    with backpack.edited(delta.scaled(-7.0)):
        _logits(network)
    with backpack.edited(delta):
        assert torch.equal(_logits(network), first)
    with backpack.edited(delta.scaled(0.0)):
        torch.testing.assert_close(_logits(network), _plain(network))


def test_what_was_longest_not_asked_for_makes_room(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    one = network.backpack.recall(IDS).bytes
    memory = network.backpack.memory = ContextualisationCache(most_bytes=int(2.5 * one))

    def read(shift: int) -> None:
        torch.testing.assert_close(_logits(network, IDS + shift), _plain(network, IDS + shift))

    def first_tokens() -> list[int]:
        return [int(known.ids[0, 0]) - 60 for known in memory.kept.values()]

    with backpack.edited(random_senses(backpack, [62, 75])):
        for shift, kept in ((0, [0]), (1, [0, 1]), (0, [1, 0]), (2, [0, 2]), (3, [2, 3])):
            read(shift)
            assert first_tokens() == kept
            assert sum(known.bytes for known in memory.kept.values()) <= memory.most_bytes
        # What would not fit by itself pushes nothing out.
        large = torch.cat([IDS] * 3)
        torch.testing.assert_close(_logits(network, large), _plain(network, large))
        assert first_tokens() == [2, 3]
    # A changed weight makes room again.
    _in_place(network)
    with backpack.edited(random_senses(backpack, [62, 75])):
        read(5)
    assert first_tokens() == [5]


@torch.no_grad()
def test_what_an_edit_serves_is_not_kept(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    with backpack.edited(random_senses(backpack, [62, 75])):
        found = network(IDS, use_cache=False).logits
        torch.testing.assert_close(found, _plain(network))
        for cache in (False, True):
            network.generate(
                IDS,
                attention_mask=torch.ones_like(IDS),
                use_cache=cache,
                max_new_tokens=4,
                do_sample=False,
                pad_token_id=backpack.end_id,
            )
        assert not _memory(network).kept
        # Texts that trials are judged by are.
        block_losses(network, IDS)
        row = Continuation(tuple(IDS[0].tolist()), 6)
        continuation_losses(network, [row], backpack.end_id)
    assert len(_memory(network).kept) == 2


def test_a_twin_remembers_by_itself(backpack: LanguageModel, network: BackpackForCausalLM) -> None:
    delta = random_senses(backpack, [62, 75])
    with backpack.edited(delta):
        _logits(network)
    names = (f"{backpack.architecture.mlp_modules(1)[0]}.weight",)
    twin = backpack.twin(own=names)
    assert isinstance(twin, BackpackForCausalLM)
    assert _memory(twin) is not _memory(network)
    assert not _memory(twin).kept
    assert _memory(twin).most_bytes == _memory(network).most_bytes
    with torch.no_grad():
        twin.get_parameter(names[0]).mul_(2)
    for some in (twin, network, twin):
        with delta.applied(some):
            torch.testing.assert_close(_logits(some), _plain(some))
    assert len(_memory(network).kept) == 1
    assert copy.deepcopy(network).backpack.memory is not network.backpack.memory


def test_nothing_is_remembered_where_nothing_is_edited(
    backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    _logits(network)
    assert not _memory(network).kept
    none = SenseDelta(torch.empty(0, 2, dtype=torch.long), torch.empty(0, 32))
    with backpack.edited(none):
        assert torch.equal(_logits(network), _plain(network))
