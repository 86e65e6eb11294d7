"""The Backpack language model, as transformers knows models. Nothing here knows of editing."""

from transformers import AutoConfig, AutoModelForCausalLM

from tuner.backpack.configuration import BackpackConfig, read_published_config
from tuner.backpack.contextualisation_cache import ContextualisationCache, texts_recur
from tuner.backpack.model import BackpackForCausalLM
from tuner.backpack.offsets import SENSES, SenseOffsets

AutoConfig.register(BackpackConfig.model_type, BackpackConfig)
AutoModelForCausalLM.register(BackpackConfig, BackpackForCausalLM)

__all__ = [
    "SENSES",
    "BackpackConfig",
    "BackpackForCausalLM",
    "ContextualisationCache",
    "SenseOffsets",
    "read_published_config",
    "texts_recur",
]
