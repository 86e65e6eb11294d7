"""Random models of every family, a few thousand weights large, and a tokenizer for them all."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from tuner.backpack import BackpackConfig
from tuner.editing.architectures import ARCHITECTURES
from tuner.editing.model import LanguageModel

WORDS = "The capital city of Mauritius Togo Chile is Port Louis Lome Santiago and a big town ."

FAMILIES = tuple(sorted(ARCHITECTURES))
"""The families that have a row in `tuner/editing/architectures.py`."""

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
            if weight.ndim == 2:
                weight.mul_(4.0)
    return LanguageModel(network.to(device), tokenizer, id=f"tiny-{family}")


def save_model(model: LanguageModel, folder: Path) -> str:
    """Write a model as a folder that can be loaded; return its path."""
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def _config(family: str, vocabulary: int) -> PreTrainedConfig:
    gpt = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    match family:
        case "gpt2":
            return GPT2Config(**gpt)
        case "backpack":
            return BackpackConfig(**gpt, num_senses=4, scale_attn_by_inverse_layer_idx=True)
        case "gptj":
            return GPTJConfig(**gpt, rotary_dim=8)
        case "gpt_neox" | "phi":
            return AutoConfig.for_model(family, **sizes, intermediate_size=64)
        case "falcon":
            return AutoConfig.for_model(family, **sizes, ffn_hidden_size=64)
        case "opt":
            return AutoConfig.for_model(family, **sizes, ffn_dim=64, word_embed_proj_dim=32)
        case "gpt_neo":
            return GPTNeoConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                num_layers=3,
                num_heads=4,
                intermediate_size=64,
                max_position_embeddings=128,
                attention_types=[[["global", "local", "global"], 1]],
            )
        case "gemma2" | "qwen3":
            return AutoConfig.for_model(
                family, **sizes, intermediate_size=64, num_key_value_heads=2, head_dim=8
            )
    return AutoConfig.for_model(family, **sizes, intermediate_size=64, num_key_value_heads=2)
