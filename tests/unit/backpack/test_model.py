"""The Backpack: its published definition, and what transformers expects of any model."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.support.sense_edits import random_senses
from tuner.backpack import BackpackForCausalLM
from tuner.editing.model import LanguageModel, load_model
from tuner.errors import ConfigError, EditError

IDS = torch.arange(60, 84).reshape(2, 12)


@pytest.fixture
def network(backpack: LanguageModel) -> BackpackForCausalLM:
    """A tiny Backpack in double precision, so that equal means equal."""
    assert isinstance(backpack.network, BackpackForCausalLM)
    return backpack.network.double()


def _naive_logits(network: BackpackForCausalLM, ids: Tensor) -> Tensor:
    """Logits of one sequence from the weights alone, as the paper and its checkpoint have them."""
    config, weights = network.config, network.state_dict()

    def linear(x: Tensor, name: str) -> Tensor:  # stored (in, out)
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.pow(2).mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def mlp(x: Tensor, name: str) -> Tensor:
        x = linear(x, f"{name}.c_fc")
        gelu_new = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return linear(gelu_new, f"{name}.c_proj")

    def attention(query: Tensor, key: Tensor, divisor: float) -> Tensor:  # parts × places × width
        scores = query @ key.mT / math.sqrt(query.shape[-1]) / divisor
        ahead = torch.ones(len(ids), len(ids)).triu(1).bool()
        return scores.masked_fill(ahead, -torch.inf).softmax(-1)

    embedding = weights["backpack.gpt2_model.wte.weight"]
    hidden = embedding[ids] + weights["backpack.gpt2_model.wpe.weight"][: len(ids)]
    for layer in range(config.n_layer):
        block = f"backpack.gpt2_model.h.{layer}"
        parts = linear(norm(hidden, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, dim=-1)
        query, key, value = (p.unflatten(-1, (config.n_head, -1)).transpose(0, 1) for p in parts)
        seen = attention(query, key, layer + 1) @ value
        hidden = hidden + linear(seen.transpose(0, 1).flatten(1), f"{block}.attn.c_proj")
        hidden = hidden + mlp(norm(hidden, f"{block}.ln_2"), f"{block}.mlp")
    hidden = norm(hidden, "backpack.gpt2_model.ln_f")

    weigher = "backpack.sense_weight_net.c_attn"  # a plain linear map, stored (out, in)
    both = hidden @ weights[f"{weigher}.weight"].T + weights[f"{weigher}.bias"]
    query, key = both.view(len(ids), 2, config.num_senses, -1).permute(1, 2, 0, 3)
    alpha = attention(query, key, 1.0)

    net = "backpack.sense_network"
    start = embedding[ids]
    first = norm(start, f"{net}.ln") + start
    second = mlp(norm(first, f"{net}.block.ln_1"), f"{net}.block.mlp") + first
    senses = mlp(norm(second, f"{net}.block.ln_2"), f"{net}.final_mlp")
    senses = senses.view(len(ids), config.num_senses, config.n_embd)
    return torch.einsum("stj,jsd->td", alpha, senses) @ embedding.T


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_the_published_definition(
    attention: str, network: BackpackForCausalLM
) -> None:
    network.set_attn_implementation(attention)
    assert network.backpack.gpt2_model.config._attn_implementation == attention
    expected = torch.stack([_naive_logits(network, row) for row in IDS])
    assert expected.std() > 0.1
    torch.testing.assert_close(network(IDS).logits, expected)
    torch.testing.assert_close(network(IDS, use_cache=False).logits, expected)


@torch.no_grad()
def test_the_layer_s_number_divides_its_attention(network: BackpackForCausalLM) -> None:
    # The trap: older SDPA code of GPT-2 ignored this setting without a word.
    assert network.config.scale_attn_by_inverse_layer_idx
    plain = type(network.config).from_dict(
        {**network.config.to_dict(), "scale_attn_by_inverse_layer_idx": False}
    )
    other = BackpackForCausalLM(plain).double().eval()
    other.load_state_dict(network.state_dict())
    assert (other(IDS).logits - network(IDS).logits).abs().max() > 1e-4


@torch.no_grad()
def test_the_loss_is_that_of_the_next_tokens(network: BackpackForCausalLM) -> None:
    read = network(IDS, labels=IDS)
    expected = F.cross_entropy(read.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(read.loss.double(), expected, rtol=1e-6, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, attention: str, network: BackpackForCausalLM) -> None:
    network.set_attn_implementation(attention)
    short = IDS[1:, :7]
    # The padding token may be a token of the text as well: only the mask tells them apart.
    pad = torch.full((1, 5), int(short[0, 3]))
    ids = torch.cat([pad, short] if side == "left" else [short, pad], dim=1)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, slice(0, 5) if side == "left" else slice(7, 12)] = 0
    logits = network(torch.cat([IDS[:1], ids]), attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:1], network(IDS[:1]).logits)
    torch.testing.assert_close(logits[1][mask[1].bool()], network(short).logits[0])


@torch.no_grad()
def test_logits_of_some_positions_are_those_among_all(network: BackpackForCausalLM) -> None:
    whole = network(IDS).logits
    assert whole.shape == (2, 12, network.config.vocab_size)
    torch.testing.assert_close(network(IDS, logits_to_keep=3).logits, whole[:, -3:])
    some = torch.tensor([1, 4, 11])
    torch.testing.assert_close(network(IDS, logits_to_keep=some).logits, whole[:, some])


@torch.no_grad()
def test_a_text_may_be_read_in_pieces(network: BackpackForCausalLM) -> None:
    whole = network(IDS).logits
    first = network(IDS[:, :5], use_cache=True)
    second = network(IDS[:, 5:9], past_key_values=first.past_key_values, use_cache=True)
    third = network(IDS[:, 9:], past_key_values=second.past_key_values, use_cache=True)
    pieces = [read.logits for read in (first, second, third)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@torch.no_grad()
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_cache_and_padding(
    beams: int, edited: bool, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    if edited:
        random_senses(backpack, [62, 74, 75]).write(network)
    # The second prompt is shorter, and padded on the left.
    prompts = IDS[:, :6].clone()
    mask = torch.ones_like(prompts)
    prompts[1, :2], mask[1, :2] = backpack.end_id, 0

    def generate(ids: Tensor, mask: Tensor, *, cache: bool) -> Tensor:
        settings = GenerationConfig(
            max_new_tokens=10,
            min_new_tokens=10,
            do_sample=False,
            num_beams=beams,
            use_cache=cache,
            pad_token_id=backpack.end_id,
            eos_token_id=backpack.end_id,
        )
        said = network.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return said[:, ids.shape[1] :]

    together = generate(prompts, mask, cache=True)
    assert together.shape == (2, 10)
    assert torch.equal(together, generate(prompts, mask, cache=False))
    for row, start in ((0, 0), (1, 2)):
        ids = prompts[row : row + 1, start:]
        alone = generate(ids, torch.ones_like(ids), cache=True)
        assert torch.equal(alone, together[row : row + 1])
        if beams == 1:
            for token in together[row]:
                logits = network(ids, use_cache=False).logits[0, -1]
                logits[backpack.end_id] = -torch.inf
                assert int(logits.argmax()) == int(token)
                ids = torch.cat([ids, token.view(1, 1)], dim=1)


@torch.no_grad()
def test_saved_and_loaded_it_says_the_same(backpack: LanguageModel, tmp_path: Path) -> None:
    expected = backpack.network(IDS).logits
    backpack.network.save_pretrained(tmp_path)
    backpack.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert isinstance(loaded.network, BackpackForCausalLM)
    assert torch.equal(loaded.network(IDS).logits, expected)
    assert loaded.fingerprint == load_model(str(tmp_path)).fingerprint == backpack.fingerprint
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, expected)


def test_input_and_output_embeddings_stay_one(backpack: LanguageModel, tmp_path: Path) -> None:
    backpack.network.save_pretrained(tmp_path)
    backpack.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).network
    for network in (backpack.network, loaded, backpack.twin(own=()), loaded.to(torch.float64)):
        assert network.lm_head.weight is network.backpack.gpt2_model.wte.weight
        assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@torch.no_grad()
@pytest.mark.parametrize("edited", [False, True])
def test_the_table_of_senses_holds_those_of_every_token(
    edited: bool, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    if edited:
        random_senses(backpack, [0, 62, 300]).write(network)
    table = network.backpack.sense_table(batch=50)
    config = network.config
    assert table.shape == (config.vocab_size, config.num_senses, config.n_embd)
    torch.testing.assert_close(table[IDS], network.backpack.senses(IDS))
    torch.testing.assert_close(table[300], network.backpack.senses(torch.tensor(300)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_offsets_written_into_a_model_are_saved_with_it(
    dtype: str, backpack: LanguageModel, tmp_path: Path
) -> None:
    delta = random_senses(backpack, [62, 75])
    base = backpack.network(IDS).logits
    edited = backpack.after(delta)
    edited.network.save_pretrained(tmp_path)
    backpack.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=dtype)  # type: ignore[arg-type]
    offsets = loaded.network.backpack.offsets
    assert loaded.network.config.sense_offsets == len(delta.pairs)
    assert torch.equal(offsets.pairs, delta.pairs)
    assert offsets.vectors.dtype is loaded.dtype is getattr(torch, dtype)
    logits = loaded.network(IDS).logits
    if dtype == "float32":
        assert torch.equal(logits, edited.network(IDS).logits)
        assert loaded.fingerprint == edited.fingerprint
    else:
        torch.testing.assert_close(
            logits.float(), edited.network(IDS).logits, rtol=0.02, atol=0.02 * base.std()
        )
    assert torch.equal(backpack.network(IDS).logits, base)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cache", [False, True])  # without, what is edited comes from memory
def test_half_precision_reads_offsets_too(
    cache: bool, dtype: torch.dtype, backpack: LanguageModel
) -> None:
    delta = random_senses(backpack, [62, 75])
    with backpack.edited(delta):
        expected = backpack.network(IDS, use_cache=cache).logits
    backpack.network.to(dtype)
    with backpack.edited(delta):
        assert backpack.network.backpack.offsets.pairs.dtype is torch.int64
        logits = backpack.network(IDS, use_cache=cache).logits
    assert logits.dtype is dtype
    near = 30 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=near)


def test_a_model_with_other_offsets_is_another_model(backpack: LanguageModel) -> None:
    one, other = (backpack.after(random_senses(backpack, [62], seed=seed)) for seed in (0, 1))
    assert len({model.fingerprint for model in (backpack, one, other)}) == 3
    settings = backpack.network.config.to_dict()
    with backpack.edited(random_senses(backpack, [62])):
        assert backpack.network.config.sense_offsets == 2
        with pytest.raises(EditError, match="changed outside"):
            backpack.check_unchanged()
    assert backpack.network.config.to_dict() == settings
    backpack.check_unchanged()


@torch.no_grad()
@pytest.mark.parametrize("cache", [False, True])
def test_hidden_states_of_the_contextualiser_are_given_where_asked(
    cache: bool, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    expected = network.backpack.gpt2_model(IDS, output_hidden_states=True).hidden_states
    assert network(IDS, use_cache=cache).hidden_states is None
    # An edit of senses changes none of them, also where its logits would come from memory.
    with backpack.edited(random_senses(backpack, [62, 75])):
        logits = network(IDS, use_cache=cache).logits
        read = network(IDS, use_cache=cache, output_hidden_states=True, logits_to_keep=1)
    assert len(read.hidden_states) == network.config.n_layer + 1
    for found, wanted in zip(read.hidden_states, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(read.logits, logits[:, -1:])
    network.config.output_hidden_states = True
    assert len(network(IDS, use_cache=cache).hidden_states) == network.config.n_layer + 1
    assert network(IDS, use_cache=cache, output_hidden_states=False).hidden_states is None


@torch.no_grad()
def test_attentions_are_those_of_the_contextualiser(network: BackpackForCausalLM) -> None:
    assert network(IDS).attentions is None
    network.set_attn_implementation("eager")
    attentions = network(IDS, output_attentions=True).attentions
    config = network.config
    assert [tuple(one.shape) for one in attentions] == [(2, config.n_head, 12, 12)] * config.n_layer


@torch.no_grad()
def test_a_tuple_is_given_where_asked(network: BackpackForCausalLM) -> None:
    named = network(IDS, labels=IDS, use_cache=True, output_hidden_states=True)
    loss, logits, cache, states = network(
        IDS, labels=IDS, use_cache=True, output_hidden_states=True, return_dict=False
    )
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    assert cache.get_seq_length() == 12
    assert all(map(torch.equal, states, named.hidden_states))
    network.config.return_dict = False
    (logits,) = network(IDS, use_cache=False)
    torch.testing.assert_close(logits, named.logits)
    assert network(IDS, use_cache=False, return_dict=True).logits.shape == logits.shape


# Where a text is too long


TOO_LONG = r"must fit the 128 positions .* got one of 129 tokens\. Shorten it"


@torch.no_grad()
def test_text_beyond_the_positions_is_refused(network: BackpackForCausalLM) -> None:
    ids = torch.full((2, 129), 60)
    assert network(ids[:, :128]).logits.shape[1] == 128
    with pytest.raises(ConfigError, match=TOO_LONG):
        network(ids)
    cache = network(ids[:, :128], use_cache=True).past_key_values
    with pytest.raises(ConfigError, match=TOO_LONG):
        network(ids[:, :1], past_key_values=cache, use_cache=True)
    with pytest.raises(ConfigError, match=TOO_LONG):
        network(ids[:, :1], position_ids=torch.full((2, 1), 128))
    # Padding takes no position.
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    assert torch.isfinite(network(ids, attention_mask=mask).logits).all()


@pytest.mark.parametrize("cache", [False, True])
def test_generation_beyond_the_positions_is_refused(
    cache: bool, backpack: LanguageModel, network: BackpackForCausalLM
) -> None:
    settings = GenerationConfig(do_sample=False, use_cache=cache, pad_token_id=backpack.end_id)
    ids = torch.full((1, 124), 60)
    # The last token is said and not read.
    settings.max_new_tokens = settings.min_new_tokens = 5
    said = network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    assert said.shape[1] == 129
    settings.max_new_tokens = settings.min_new_tokens = 6
    with pytest.raises(ConfigError, match=TOO_LONG):
        network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
