"""The settings of a Backpack."""

from typing import ClassVar, final

from transformers import GPT2Config, PreTrainedConfig

_PUBLISHED_CLASS = "BackpackGPT2LMHeadModel"


@final
class BackpackConfig(GPT2Config):  # type: ignore[misc]
    """A GPT-2 configuration for the contextualiser, and the sizes of the sense network."""

    model_type: ClassVar[str] = "backpack"

    num_senses: int = 16
    """Sense vectors per token."""
    sense_intermediate_scale: int = 4
    """Hidden width of the sense network's maps, as a multiple of the model's width."""
    sense_offsets: int = 0
    """How many (token, sense) pairs carry an additive vector: what an edit wrote into the model."""


def read_published_config(source: str, revision: str | None) -> BackpackConfig | None:
    """Return the settings of a checkpoint in the published layout, or None if it is not a Backpack.

    `stanfordnlp/backpack-gpt2` calls itself a GPT-2 and points to code that comes with it. The
    code is not run: its settings and weights are those of our own class.

    Raises:
        OSError: there is no configuration at `source`.
    """
    settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    if _PUBLISHED_CLASS not in (settings.get("architectures") or ()):
        return None
    for key in ("model_type", "architectures", "auto_map"):
        settings.pop(key, None)
    config: BackpackConfig = BackpackConfig.from_dict(settings)
    return config
