"""Random models of every family, a few thousand weights large."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from tuner.backpack import BackpackConfig
from tuner.editing.model import LanguageModel

WORDS = "The capital city of Mauritius Togo Chile is Port Louis Lome Santiago and a big town ."


def _config(family: str, vocabulary: int) -> PreTrainedConfig:
    gpt = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
    neox = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    match family:
        case "gpt_neox":
            return GPTNeoXConfig(**neox)
        case "gpt2":
            return GPT2Config(**gpt)
        case "backpack":
            return BackpackConfig(**gpt, num_senses=4, scale_attn_by_inverse_layer_idx=True)
        case "gptj":
            return GPTJConfig(**gpt, rotary_dim=8)
        case "llama":
            return LlamaConfig(**neox, num_key_value_heads=2)
        case "mistral":
            return MistralConfig(**neox, num_key_value_heads=2)
        case "qwen2":
            return Qwen2Config(**neox, num_key_value_heads=2)
    raise ValueError(family)


FAMILIES = ("backpack", "gpt_neox", "gpt2", "gptj", "llama", "mistral", "qwen2")


def make_tiny_model(
    family: str, tokenizer: PreTrainedTokenizerFast, device: str = "cpu"
) -> LanguageModel:
    """A random model of a family, a few thousand weights large."""
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
