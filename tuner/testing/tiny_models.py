"""Random models of every family, a few thousand weights large, and a tokenizer for them all."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from tuner.editing.architectures import ARCHITECTURES
from tuner.editing.model import LanguageModel

WORDS = "The capital city of Mauritius Togo Chile is Port Louis Lome Santiago and a big town ."

DERIVED_FAMILIES = (
    "falcon",
    "gemma2",
    "gemma3_text",
    "gpt_neo",
    "gpt_oss",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen3",
    "stablelm",
)
"""Families without a row there: where their maps are is read off their modules."""

FAMILIES = tuple(sorted((*ARCHITECTURES, *DERIVED_FAMILIES)))
"""Every family that is tried: those with a row in `tuner/editing/architectures.py` and others."""

DISTINCT_FAMILIES = ("backpack", "llama", "opt")
"""Families that differ in all that editors see: transposed weights, a gate, and an MLP that reads
all tokens of a batch as one list."""


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with an end-of-text token, as the families have it."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [WORDS] * 20, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def make_tiny_model(
    family: str, tokenizer: PreTrainedTokenizerFast | None = None, device: str = "cpu"
) -> LanguageModel:
    """Return a random model of a family, named by its `model_type` in transformers."""
    tokenizer = tokenizer or tiny_tokenizer()
    config = _config(family, len(tokenizer))
    config.eos_token_id = config.bos_token_id = config.pad_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Random models are nearly uniform; spread the logits so that losses differ.
        for weight in network.parameters():
            if weight.ndim >= 2:
                weight.mul_(4.0)
    return LanguageModel(network.to(device), tokenizer, id=f"tiny-{family}")


def save_model(model: LanguageModel, folder: Path) -> str:
    """Write a model as a folder that can be loaded; return its path."""
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


_LAYERS, _HEADS, _HEAD_WIDTH = 3, 4, 8
_WIDTH = _HEADS * _HEAD_WIDTH
_CONTEXT = 128

# Sizes by the end of the name that a configuration gives them.
_SIZES = {
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "key_value_heads": 2,
    "kv_heads": 2,
    "head_dim": _HEAD_WIDTH,
    "rotary_dim": _HEAD_WIDTH,
    "hidden_size": _WIDTH,
    "embed_proj_dim": _WIDTH,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "experts_per_tok": 2,
    "num_experts": 4,
    "local_experts": 4,
    "position_embeddings": _CONTEXT,
    # Narrower than the longer texts of the tests, so that a window hides something.
    "sliding_window": 6,
    "window_size": 6,
}

# What those names do not settle.
_ODD: dict[str, dict[str, object]] = {
    "backpack": {"num_senses": 4, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    # Nothing enlarges what its layers read, and of small weights an MLP would see next to nothing.
    "olmo2": {"initializer_range": 0.05},
}


def _config(family: str, vocabulary: int) -> PreTrainedConfig:
    """Return a family's own configuration, with every size in it made small."""
    usual = AutoConfig.for_model(family)
    common = {own: name for name, own in usual.attribute_map.items()}
    sizes: dict[str, object] = {"vocab_size": vocabulary}
    for own, value in usual.to_dict().items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            ends = [end for end in _SIZES if common.get(own, own).endswith(end)]
            if ends:
                sizes[own] = _SIZES[max(ends, key=len)]
    if (kinds := getattr(usual, "layer_types", None)) is not None:
        # Some layers of each kind, in the family's order.
        order = list(dict.fromkeys(kinds))
        sizes["layer_types"] = [order[layer % len(order)] for layer in range(_LAYERS)]
    return type(usual)(**sizes | _ODD.get(family, {}))
