"""Normalised arguments of one causal-LM forward pass."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep

from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class Call:
    """What a causal language model was asked."""

    ids: Int[Tensor, "batch length"]
    kept: Int[Tensor, " kept"]
    mask: Int[Tensor, "batch whole"] | None
    position_ids: Int[Tensor, "#batch length"] | None
    labels: Int[Tensor, "batch length"] | None
    cache: Cache | None
    further: dict[str, Any]

    @classmethod
    def of(
        cls,
        reader: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Self:
        """Return the call, whether its arguments were given by place or by name.

        `reader` is who needs to follow it, for messages: "An ensemble".

        Raises:
            ConfigError: there are no token ids, or the mask or the positions are not plain.
        """
        signature = inspect.signature(forward)
        given = dict(signature.bind(*args, **kwargs).arguments)
        rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        further = {key: value for name in rest for key, value in given.pop(name, {}).items()}
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        asked = given.get("logits_to_keep", 0)
        if ids is None:
            raise ConfigError(
                f"{reader} needs input_ids, which it reads too: inputs_embeds say nothing to it."
            )
        if mask is not None and mask.ndim != 2:
            raise ConfigError(
                f"{reader} needs an attention mask of batch × tokens, but got {mask.ndim} "
                "dimensions. Leave the cache implementation at its default."
            )
        if isinstance(asked, Tensor) and asked.ndim != 1:
            raise ConfigError(
                f"{reader} needs the same logits_to_keep for all rows, as a number or as a list "
                f"of positions, but got {asked.ndim} dimensions."
            )
        places = torch.arange(ids.shape[1], device=ids.device)[None, :, None]
        kept = slice_logits_to_keep(places, asked)[0, :, 0]
        return cls(
            ids,
            kept,
            mask,
            given.get("position_ids"),
            given.get("labels"),
            given.get("past_key_values"),
            further,
        )

    def loss(self, network: Any, logits: Float[Tensor, "batch kept vocabulary"]) -> Tensor:
        """Return the loss of `logits`, formed as the network forms its own."""
        loss: Tensor = network.loss_function(
            logits=logits,
            labels=self.labels,
            vocab_size=network.config.vocab_size,
            **self.further,
        )
        return loss
