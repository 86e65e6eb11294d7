"""The layout of `stanfordnlp/backpack-gpt2`: it loads as it is, and no code of its own is run."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tuner.backpack import BackpackConfig, BackpackForCausalLM, read_published_config
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import load_model
from tuner.editing.task import ExampleSet
from tuner.editors.senses.editor import Senses
from tuner.errors import ConfigError

WIDTH, LAYERS, HEADS, SENSES, PLACES = 32, 2, 4, 4, 64
# The published model's 50257 tokens are padded to 50264.
VOCABULARY = 328
IDS = torch.arange(60, 84).reshape(2, 12)
EMBEDDINGS = {
    "backpack.gpt2_model.wte.weight",
    "backpack.word_embeddings.weight",
    "lm_head.weight",
}

# As published, but for the sizes.
CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["BackpackGPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "auto_map": {
        "AutoConfig": "configuration_backpack_gpt2.BackpackGPT2Config",
        "AutoModelForCausalLM": "modeling_backpack_gpt2.BackpackGPT2LMHeadModel",
    },
    "bos_token_id": 0,
    "embd_pdrop": 0.1,
    "eos_token_id": 0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_inner": None,
    "n_layer": LAYERS,
    "n_positions": PLACES,
    "num_senses": SENSES,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": True,
    "scale_attn_weights": True,
    "sense_intermediate_scale": 4,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def _weights() -> dict[str, Tensor]:
    """The published names and shapes, Conv1D as (in, out), with what a pickle holds beside them."""
    random = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        weights[name] = torch.randn(*shape, generator=random) / math.sqrt(shape[0])

    def conv(name: str, inputs: int, outputs: int) -> None:
        draw(f"{name}.weight", inputs, outputs)
        draw(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        draw(f"{name}.weight", WIDTH)
        draw(f"{name}.bias", WIDTH)

    gpt, net = "backpack.gpt2_model", "backpack.sense_network"
    weights[f"{gpt}.wte.weight"] = torch.randn(VOCABULARY, WIDTH, generator=random)
    weights[f"{gpt}.wpe.weight"] = torch.randn(PLACES, WIDTH, generator=random)
    norm(f"{gpt}.ln_f")
    for layer in range(LAYERS):
        block = f"{gpt}.h.{layer}"
        norm(f"{block}.ln_1")
        norm(f"{block}.ln_2")
        conv(f"{block}.attn.c_attn", WIDTH, 3 * WIDTH)
        conv(f"{block}.attn.c_proj", WIDTH, WIDTH)
        conv(f"{block}.mlp.c_fc", WIDTH, 4 * WIDTH)
        conv(f"{block}.mlp.c_proj", 4 * WIDTH, WIDTH)
        weights[f"{block}.attn.bias"] = torch.ones(1, 1, PLACES, PLACES).tril().bool()
        weights[f"{block}.attn.masked_bias"] = torch.tensor(-1e4)
    norm(f"{net}.ln")
    norm(f"{net}.block.ln_1")
    norm(f"{net}.block.ln_2")
    conv(f"{net}.block.mlp.c_fc", WIDTH, 4 * WIDTH)
    conv(f"{net}.block.mlp.c_proj", 4 * WIDTH, WIDTH)
    conv(f"{net}.final_mlp.c_fc", WIDTH, 4 * WIDTH)
    conv(f"{net}.final_mlp.c_proj", 4 * WIDTH, SENSES * WIDTH)
    draw("backpack.sense_weight_net.c_attn.weight", 2 * WIDTH, WIDTH)  # nn.Linear: (out, in)
    draw("backpack.sense_weight_net.c_attn.bias", 2 * WIDTH)
    weights["backpack.word_embeddings.weight"] = weights[f"{gpt}.wte.weight"].clone()
    weights["backpack.position_embeddings.weight"] = weights[f"{gpt}.wpe.weight"].clone()
    weights["lm_head.weight"] = weights[f"{gpt}.wte.weight"].clone()
    return weights


Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Publish:
    """Write a checkpoint in the published layout, without the named weights."""

    def write(*left_out: str, pickled: bool = False, with_code: bool = True) -> Path:
        folder = tmp_path / "published"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
        tokenizer.save_pretrained(folder)
        weights = {name: weight for name, weight in _weights().items() if name not in left_out}
        if pickled:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if with_code:
            for module in ("configuration", "modeling"):
                code = f"raise SystemExit('the code in {module} was run')\n"
                (folder / f"{module}_backpack_gpt2.py").write_text(code)
        return folder

    return write


@torch.no_grad()
def _expected() -> Tensor:
    """Logits of our own class with the same weights, each put in its place by hand."""
    config = BackpackConfig(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=PLACES,
        num_senses=SENSES,
        sense_intermediate_scale=4,
        scale_attn_by_inverse_layer_idx=True,
    )
    network = BackpackForCausalLM(config).eval()
    weights = _weights()
    for name, weight in network.named_parameters():
        assert weight.shape == weights[name].shape, name
        weight.copy_(weights[name])
    logits: Tensor = network(IDS).logits
    return logits


@torch.no_grad()
@pytest.mark.parametrize("with_code", [True, False])
def test_it_loads_as_a_backpack_and_its_code_is_not_run(
    with_code: bool, publish: Publish, tmp_path: Path
) -> None:
    model = load_model(str(publish(with_code=with_code)))
    assert type(model.network) is BackpackForCausalLM
    assert model.architecture.layer_count(model.network) == LAYERS
    torch.testing.assert_close(model.network(IDS).logits, _expected(), rtol=0, atol=0)

    model.network.save_pretrained(tmp_path / "ours")
    model.tokenizer.save_pretrained(tmp_path / "ours")
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert settings["model_type"] == "backpack"
    assert "auto_map" not in settings
    again = load_model(str(tmp_path / "ours"))
    torch.testing.assert_close(again.network(IDS).logits, _expected(), rtol=0, atol=0)
    assert again.fingerprint == model.fingerprint
    assert again.complete("The capital of") == model.complete("The capital of")


def test_masks_and_aliases_are_known_and_nothing_else_is(publish: Publish) -> None:
    folder = publish()
    weights = _weights() | {
        "backpack.sense_network.ln_2.weight": torch.zeros(2),
        "lm_head.bias": torch.zeros(2),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_published_config(str(folder), None)
    assert config is not None
    _, found = BackpackForCausalLM.from_pretrained(folder, config=config, output_loading_info=True)
    assert not found["missing_keys"]
    assert set(found["unexpected_keys"]) == weights.keys() - _weights().keys()


@torch.no_grad()
@pytest.mark.parametrize("present", ["backpack.gpt2_model.wte.weight", "lm_head.weight"])
def test_one_of_the_tied_names_is_enough(present: str, publish: Publish) -> None:
    aliases = ("backpack.position_embeddings.weight",)
    model = load_model(str(publish(*(EMBEDDINGS - {present}), *aliases)))
    torch.testing.assert_close(model.network(IDS).logits, _expected(), rtol=0, atol=0)
    assert model.network.lm_head.weight is model.network.backpack.gpt2_model.wte.weight


@pytest.mark.parametrize(
    "missing",
    [
        EMBEDDINGS,
        EMBEDDINGS - {"backpack.word_embeddings.weight"},
        {"backpack.sense_network.final_mlp.c_proj.weight"},
        {"backpack.sense_network.block.ln_2.bias"},
        {"backpack.sense_weight_net.c_attn.bias"},
        {"backpack.gpt2_model.h.1.attn.c_attn.bias"},
    ],
)
def test_missing_weights_are_named_and_never_drawn(missing: set[str], publish: Publish) -> None:
    folder = publish(*missing)
    with pytest.raises(ConfigError, match="are not whole") as told:
        load_model(str(folder))
    assert any(name in str(told.value) for name in missing)


def test_pickled_weights_are_refused(publish: Publish) -> None:
    folder = publish(pickled=True)
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(str(folder))


def test_a_padded_vocabulary_is_no_hindrance(
    publish: Publish,
    tokenizer: PreTrainedTokenizerFast,
    examples: ExampleSet,
    corpus: Corpus,
) -> None:
    model = load_model(str(publish()))
    assert model.network.config.vocab_size > len(tokenizer)
    editor = Senses(learning_rate=0.1, epochs=2)
    *_, step = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, SenseDelta)
    read = {token for row in examples.rows for token in model.encode(row.prompt + row.target)}
    chosen = set(step.delta.pairs[:, 0].tolist())
    assert chosen
    assert chosen <= read
    assert max(chosen) < len(tokenizer)
