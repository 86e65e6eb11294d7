"""An ensemble: the formula itself, in every form of forward and generate, and nothing left."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from tuner.backpack import BackpackConfig, BackpackForCausalLM, texts_recur
from tuner.deltas.ensemble.ensemble_delta import EnsembleDelta
from tuner.deltas.ensemble.log_ratio import LogRatio
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, LowRank, WeightDelta
from tuner.editing.likelihood import block_losses, encode_continuation
from tuner.editing.model import LanguageModel
from tuner.errors import BaseMismatch, ConfigError
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.files.cache import Cache
from tuner.testing.tiny_models import make_tiny_model

STRENGTH = 0.8
LENGTH = 10


def _senses(seed: int = 0) -> SenseDelta:
    # Every third letter has offsets, so that most rows see one, and some positions none.
    pairs = torch.tensor([[token, sense] for token in range(40, 110, 3) for sense in (0, 2)])
    random = torch.Generator().manual_seed(seed)
    return SenseDelta(pairs, 2 * torch.randn(len(pairs), 32, generator=random))


def _ensemble(small: LanguageModel) -> EnsembleDelta:
    return EnsembleDelta(LogRatio(small, _senses()), STRENGTH)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 256, (3, LENGTH), generator=torch.Generator().manual_seed(2))


def _plain(
    large: LanguageModel,
    small: LanguageModel,
    delta: Delta,
    ids: Tensor,
    mask: Tensor | None = None,
    strength: float = STRENGTH,
) -> Tensor:
    """The formula from three forward passes that know nothing of each other."""
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    logits: Tensor = large.network(**given).logits.clone()
    before = F.log_softmax(small.network(**given).logits, dim=-1)
    with small.edited(delta):
        after = F.log_softmax(small.network(**given).logits, dim=-1)
    count = min(logits.shape[-1], before.shape[-1])
    logits[..., :count] += strength * (after - before)[..., :count]
    return logits


@torch.no_grad()
def test_the_logits_are_those_of_the_formula(
    model: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    expected = _plain(model, backpack, _senses(), ids)
    base = model.network(input_ids=ids, use_cache=False).logits
    assert (expected - base).abs().max() > 0.1
    with model.edited(_ensemble(backpack)):
        # First from memory, which is filled here and then used; then with a cache.
        for use_cache in (False, False, True):
            with texts_recur():
                found = model.network(input_ids=ids, use_cache=use_cache).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(backpack.network.backpack.memory.kept) == 1
    assert torch.equal(model.network(input_ids=ids, use_cache=False).logits, base)
    model.check_unchanged()
    backpack.check_unchanged()


@torch.no_grad()
def test_what_it_serves_is_not_kept_and_what_it_is_judged_by_is(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    memory = backpack.network.backpack.memory
    expected = _plain(neox, backpack, _senses(), ids)
    with neox.edited(_ensemble(backpack)):
        found = neox.network(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        neox.continue_greedily(ids, torch.ones_like(ids), 4)
        assert not memory.kept
        first = block_losses(neox.network, ids)
        assert len(memory.kept) == 1
        assert torch.equal(block_losses(neox.network, ids), first)
    assert len(memory.kept) == 1


@torch.no_grad()
def test_what_sees_no_edited_token_changes_by_exactly_zero(
    neox: LanguageModel, backpack: LanguageModel
) -> None:
    ids = torch.tensor([[38, 39, 41, 42, 43, 44], [38, 39, 41, 42, 44, 45]])
    base = neox.network(input_ids=ids, use_cache=False).logits
    with neox.edited(_ensemble(backpack)):
        found = neox.network(input_ids=ids, use_cache=False).logits
    assert torch.equal(found[0, :4], base[0, :4])
    assert not torch.equal(found[0, 4:], base[0, 4:])
    assert torch.equal(found[1], base[1])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_padding_changes_nothing(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor, side: str, use_cache: bool
) -> None:
    # The padding token is an edited one: what is masked must not count.
    pad, width = 40, 4
    padding, ones = torch.full((3, width), pad), torch.ones_like(ids)
    parts = ([padding, ids], [0 * padding, ones])
    padded, mask = (torch.cat(p if side == "left" else p[::-1], dim=1) for p in parts)
    own = slice(width, None) if side == "left" else slice(LENGTH)
    # Without positions told, both models must find the same from the mask.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with neox.edited(_ensemble(backpack)):
        alone = neox.network(input_ids=ids).logits
        for told in (None, positions):
            batched = neox.network(
                input_ids=padded, attention_mask=mask, position_ids=told, use_cache=use_cache
            ).logits
            torch.testing.assert_close(batched[:, own], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_arguments_count_by_place_and_by_name(
    model: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    with model.edited(_ensemble(backpack)):
        by_name = model.network(input_ids=ids).logits
        assert torch.equal(model.network(ids).logits, by_name)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [False, True])
def test_only_the_positions_asked_for_are_answered(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor, use_cache: bool
) -> None:
    with neox.edited(_ensemble(backpack)):
        whole = neox.network(input_ids=ids, use_cache=use_cache).logits
        for asked, where in (
            (1, slice(-1, None)),
            (3, slice(-3, None)),
            (torch.tensor([1, 4, 5]), [1, 4, 5]),
        ):
            part = neox.network(input_ids=ids, use_cache=use_cache, logits_to_keep=asked).logits
            torch.testing.assert_close(part, whole[:, where], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_loss_is_that_of_the_ensembles_logits(
    model: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    base = model.network(input_ids=ids, labels=ids).loss
    with model.edited(_ensemble(backpack)):
        said = model.network(input_ids=ids, labels=ids)
    expected = F.cross_entropy(said.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(said.loss, expected)
    assert abs(said.loss - base) > 1e-3


def _greedy(large: LanguageModel, small: LanguageModel, prompt: Tensor, new: int) -> Tensor:
    row = prompt[None]
    for _ in range(new):
        said = _plain(large, small, _senses(), row)[:, -1].argmax(-1, keepdim=True)
        row = torch.cat([row, said], dim=1)
    return row[0, len(prompt) :]


@torch.no_grad()
def test_generation_follows_the_formula_with_and_without_cache_alone_and_in_batches(
    model: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    new, lengths = 8, (LENGTH, LENGTH - 4, LENGTH - 2)
    mask = torch.tensor([[0] * (LENGTH - n) + [1] * n for n in lengths])
    prompts = [row[LENGTH - n :] for row, n in zip(ids, lengths, strict=True)]
    expected = [_greedy(model, backpack, prompt, new) for prompt in prompts]
    plain = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    with model.edited(_ensemble(backpack)):
        for use_cache in (True, False):
            batch = model.network.generate(
                input_ids=ids, attention_mask=mask, use_cache=use_cache, **plain
            )
            alone = [
                model.network.generate(
                    input_ids=prompt[None],
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                    use_cache=use_cache,
                    **plain,
                )
                for prompt in prompts
            ]
            for row, one, prompt, wanted in zip(batch, alone, prompts, expected, strict=True):
                assert torch.equal(row[LENGTH:], wanted)
                assert torch.equal(one[0, len(prompt) :], wanted)
    unedited = model.network.generate(input_ids=ids, attention_mask=mask, **plain)
    assert not all(torch.equal(r[LENGTH:], w) for r, w in zip(unedited, expected, strict=True))


@torch.no_grad()
def test_beams_carry_the_small_models_with_them(
    model: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    settings = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    with model.edited(_ensemble(backpack)):
        cached, uncached = (
            model.network.generate(
                input_ids=ids, attention_mask=mask, use_cache=use, pad_token_id=0, **settings
            )
            for use in (True, False)
        )
    assert torch.equal(cached, uncached)
    unedited = model.network.generate(
        input_ids=ids, attention_mask=mask, pad_token_id=0, **settings
    )
    assert cached.shape != unedited.shape or not torch.equal(cached, unedited)


@torch.no_grad()
@pytest.mark.parametrize("empty", [None, DynamicCache])
def test_a_cache_can_be_cropped_copied_and_selected_from(
    neox: LanguageModel,
    backpack: LanguageModel,
    ids: Tensor,
    empty: type[DynamicCache] | None,
) -> None:
    cache = None if empty is None else empty()
    with neox.edited(_ensemble(backpack)):
        whole = neox.network(input_ids=ids, use_cache=False).logits
        cache = neox.network(input_ids=ids, use_cache=True, past_key_values=cache).past_key_values
        cache.crop(-4)
        kept = copy.deepcopy(cache)
        for one in (cache, kept):
            rest = neox.network(input_ids=ids[:, -4:], past_key_values=one, use_cache=True).logits
            torch.testing.assert_close(rest, whole[:, -4:], atol=1e-4, rtol=0)
        cache.crop(-1)
        rows = torch.tensor([2, 0])
        cache.batch_select_indices(rows)
        last = neox.network(input_ids=ids[rows, -1:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(last, whole[rows, -1:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_cache_from_outside_the_ensemble_is_refused(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    cache = neox.network(input_ids=ids[:, :6], use_cache=True).past_key_values
    with (
        neox.edited(_ensemble(backpack)),
        pytest.raises(ConfigError, match="6 tokens that were read without the ensemble"),
    ):
        neox.network(input_ids=ids[:, 6:], past_key_values=cache, use_cache=True)


@torch.no_grad()
def test_strength_scales_the_logits_and_zero_is_no_change(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    whole = _ensemble(backpack)
    half, none = whole.scaled(0.5), whole.scaled(0.0)
    assert (half.strength, none.strength) == (STRENGTH / 2, 0.0)
    assert half.ratio is whole.ratio  # the edited twin is made once
    base = neox.network(input_ids=ids).logits
    with neox.edited(whole):
        far = neox.network(input_ids=ids).logits
    with neox.edited(half):
        near = neox.network(input_ids=ids).logits
    with neox.edited(none):
        assert torch.equal(neox.network(input_ids=ids).logits, base)
    torch.testing.assert_close(near - base, (far - base) / 2, atol=1e-5, rtol=0)


@torch.no_grad()
def test_any_change_of_weights_can_be_the_small_models(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    name = f"{backpack.architecture.mlp_modules(1)[0]}.weight"
    rows, columns = backpack.network.get_parameter(name).shape
    delta = WeightDelta({name: LowRank(torch.randn(rows, 2), torch.randn(2, columns))})
    expected = _plain(neox, backpack, delta, ids)
    with neox.edited(EnsembleDelta(LogRatio(backpack, delta), STRENGTH)):
        for use_cache in (False, True):
            found = neox.network(input_ids=ids, use_cache=use_cache).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    backpack.check_unchanged()


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [False, True])
def test_padding_shifts_no_position_of_a_small_model_that_counts_from_the_left(
    neox: LanguageModel, tokenizer: PreTrainedTokenizerFast, ids: Tensor, use_cache: bool
) -> None:
    small = make_tiny_model("gpt2", tokenizer)
    name = f"{small.architecture.mlp_modules(1)[0]}.weight"
    rows, columns = small.network.get_parameter(name).shape
    delta = WeightDelta({name: LowRank(torch.randn(rows, 2), torch.randn(2, columns))})
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], dim=1)
    with neox.edited(EnsembleDelta(LogRatio(small, delta), STRENGTH)):
        alone = neox.network(input_ids=ids).logits
        batched = neox.network(
            input_ids=padded, attention_mask=(padded > 0).long(), use_cache=use_cache
        ).logits
    torch.testing.assert_close(batched[:, 4:], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_small_model_with_senses_of_its_own_edited_before(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    later = backpack.after(_senses(seed=5))
    expected = _plain(neox, later, _senses(), ids)
    with neox.edited(EnsembleDelta(LogRatio(later, _senses()), STRENGTH)):
        found = neox.network(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_only_tokens_that_both_know_are_touched(
    tokenizer: PreTrainedTokenizerFast, backpack: LanguageModel, ids: Tensor
) -> None:
    narrow = make_tiny_model("gpt_neox", tokenizer)
    count = len(tokenizer)
    narrow.network.resize_token_embeddings(count + 7)
    large = LanguageModel(narrow.network, tokenizer, id="padded")
    config = BackpackConfig(
        vocab_size=count + 3, n_embd=32, n_layer=1, n_head=4, n_positions=32, num_senses=4
    )
    small = LanguageModel(BackpackForCausalLM(config), tokenizer, id="padded-backpack")
    base = large.network(input_ids=ids).logits
    expected = _plain(large, small, _senses(), ids)
    with large.edited(EnsembleDelta(LogRatio(small, _senses()), STRENGTH)):
        found = large.network(input_ids=ids).logits
    assert torch.equal(found[..., count:], base[..., count:])
    torch.testing.assert_close(found[..., :count], expected[..., :count], atol=1e-5, rtol=0)


@torch.no_grad()
def test_small_shifts_survive_a_large_model_in_half_precision(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    large = LanguageModel(neox.network.to(torch.bfloat16), neox.tokenizer, id="half")
    base = large.network(input_ids=ids).logits
    expected = _plain(large, backpack, _senses(), ids, strength=1.0).float() - base.float()
    with large.edited(EnsembleDelta(LogRatio(backpack, _senses()), 1e-4)):
        found = large.network(input_ids=ids).logits
    assert found.dtype is torch.float32
    torch.testing.assert_close((found - base.float()) * 1e4, expected, atol=0.05, rtol=0.05)


def test_the_large_models_gradient_passes_through(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    weight = neox.network.get_parameter("gpt_neox.layers.0.mlp.dense_h_to_4h.weight")
    weight.requires_grad_(True)
    with neox.edited(_ensemble(backpack)):
        loss = neox.network(input_ids=ids, labels=ids).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@torch.no_grad()
def test_nothing_stays_after_an_error_inside(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    base = neox.network(input_ids=ids).logits
    with neox.edited(_ensemble(backpack)):
        neox.network(input_ids=ids)
    with pytest.raises(RuntimeError, match="boom"), neox.edited(_ensemble(backpack)):
        raise RuntimeError("boom")
    assert torch.equal(neox.network(input_ids=ids).logits, base)
    assert not neox.network._forward_hooks
    neox.check_unchanged()
    backpack.check_unchanged()


@torch.no_grad()
def test_what_cannot_be_followed_is_refused(
    neox: LanguageModel, backpack: LanguageModel, ids: Tensor
) -> None:
    network = neox.network
    embedded = network.get_input_embeddings()(ids)
    mask = torch.zeros(3, 1, LENGTH, LENGTH)
    with neox.edited(_ensemble(backpack)):
        with pytest.raises(ConfigError, match="needs input_ids"):
            network(inputs_embeds=embedded)
        with pytest.raises(ConfigError, match="batch × tokens"):
            network(input_ids=ids, attention_mask=mask)
        with pytest.raises(ConfigError, match="same logits_to_keep"):
            network(input_ids=ids, logits_to_keep=torch.zeros(3, 2, dtype=torch.long))
        with pytest.raises(ConfigError, match="return_dict"):
            network(input_ids=ids, return_dict=False)


@torch.no_grad()
def test_texts_beyond_the_small_models_context_are_refused(
    neox: LanguageModel, tokenizer: PreTrainedTokenizerFast, ids: Tensor
) -> None:
    config = BackpackConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=4, n_positions=8, num_senses=4
    )
    small = LanguageModel(BackpackForCausalLM(config), tokenizer, id="short")
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    with neox.edited(EnsembleDelta(LogRatio(small, _senses()))):
        neox.network(input_ids=ids, attention_mask=mask, use_cache=False)
        with pytest.raises(ConfigError, match="10 tokens exceeds the context of short"):
            neox.network(input_ids=ids)


def test_a_change_that_does_not_fit_the_small_model_fails_before_anything_is_run(
    neox: LanguageModel, backpack: LanguageModel
) -> None:
    wide = SenseDelta(torch.tensor([[1, 0]]), torch.ones(1, 64))
    with (
        pytest.raises(BaseMismatch, match="do not fit a Backpack"),
        neox.edited(EnsembleDelta(LogRatio(backpack, wide))),
    ):
        pass
    assert not neox.network._forward_hooks


def test_blocks_that_cannot_change_prove_nothing_about_the_budget(
    neox: LanguageModel, backpack: LanguageModel, tmp_path: Path
) -> None:
    # An edited token in every eighth block: 64 of 512 can change, fewer than a verdict needs.
    blocks = torch.randint(1, 200, (512, 16), generator=torch.Generator().manual_seed(3))
    blocks[::8, 5] = 250
    meter = DeviationMeter(
        neox, Corpus(name="rare", blocks=blocks), confidence=0.95, cache=Cache(tmp_path)
    )
    rare = SenseDelta(torch.tensor([[250, 0]]), torch.full((1, 32), 1e-3))
    found = meter.measure(EnsembleDelta(LogRatio(backpack, rare)), (1e-1,), sure=False)
    assert found.tokens == 512 * 15


def test_the_large_model_completes_with_what_the_small_one_learned(
    neox: LanguageModel, backpack: LanguageModel
) -> None:
    prompt = "The capital of Togo is"
    text = encode_continuation(backpack, prompt, " Lome")
    wanted = backpack.network.get_input_embeddings().weight[text.ids[text.start]]
    before = neox.complete(prompt, max_new_tokens=1)
    pairs = torch.tensor([[token, 0] for token in sorted(set(text.ids[: text.start]))])
    delta = SenseDelta(pairs, (50 * wanted).expand(len(pairs), -1).clone())
    with neox.edited(EnsembleDelta(LogRatio(backpack, delta), 10.0)):
        after = neox.complete(prompt, max_new_tokens=1)
    assert before != after
    assert after == backpack.tokenizer.decode(text.ids[text.start])
    assert neox.complete(prompt, max_new_tokens=1) == before
