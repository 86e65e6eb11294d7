"""What an edit changes in what a small model says."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tuner.backpack import BackpackForCausalLM
from tuner.deltas.ensemble.small_caches import SmallCaches
from tuner.deltas.senses import SenseDelta
from tuner.editing.delta import AdditiveDelta
from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class LogRatioBatch:
    """A batch of token sequences, or what follows the ones in the caches, to be read."""

    ids: Int[Tensor, "batch length"]
    kept: Int[Tensor, " kept"]
    """The positions at which the next token is asked for."""
    mask: Int[Tensor, "batch whole"] | None = None
    position_ids: Int[Tensor, "#batch length"] | None = None
    caches: SmallCaches | None = None


@final
@dataclass(frozen=True)
class Ratios:
    """log p_edited − log p_base of every token, at the places where they differ."""

    places: Bool[Tensor, "batch kept"]
    values: Float[Tensor, "places tokens"]


@final
@dataclass(frozen=True)
class LogRatio:
    """log p_edited − log p_base of a small model under a change of its own."""

    small: LanguageModel
    delta: AdditiveDelta

    @cached_property
    def edited(self) -> PreTrainedModel:
        """The small network with the change written into it; its other weights are shared.

        Raises:
            BaseMismatch: the change does not fit the small model.
        """
        network = self.small.twin(own=self.delta.changed)
        self.delta.write(network)
        return network

    @property
    def token_count(self) -> int:
        """How many tokens the small model knows; what its embeddings have beyond is padding."""
        return min(int(self.small.network.config.vocab_size), len(self.small.tokenizer))

    @torch.no_grad()
    def read(self, reading: LogRatioBatch) -> Ratios:
        """Return the ratios at the positions asked for, in single precision at least.

        Raises:
            ConfigError: the text is longer than what the small model can read, or has tokens
                that it does not know.
        """
        self._check_length(reading)
        self._check_tokens(reading)
        caches = reading.caches
        if caches is None and reading.position_ids is None and self._can_remember:
            return self._from_memory(reading)
        base = self._logits(self.small.network, reading, None if caches is None else caches.base)
        edited = self._logits(self.edited, reading, None if caches is None else caches.edited)
        places = torch.ones(base.shape[:2], dtype=torch.bool, device=base.device)
        return Ratios(places, self._between(base.flatten(0, 1), edited.flatten(0, 1)))

    @property
    def _can_remember(self) -> bool:
        network = self.small.network
        if not isinstance(network, BackpackForCausalLM) or not isinstance(self.delta, SenseDelta):
            return False
        return network.backpack.offsets is None

    def _from_memory(self, reading: LogRatioBatch) -> Ratios:
        """Return the ratios where an edited token is seen: they are zero everywhere else.

        What the base says of a batch is kept from one change of senses to the next.
        """
        network, offsets = self.small.network, self.edited.backpack.offsets
        edited = offsets.touched(reading.ids)
        if reading.mask is not None:
            edited = edited & reading.mask.bool()
        places = edited.cummax(dim=1).values[:, reading.kept]
        if not places.any():
            return Ratios(places, torch.empty(0, self.token_count, device=places.device))
        known = network.backpack.recall(reading.ids, reading.mask)
        rows, shift = known.shift(offsets, reading.kept, network.config.num_senses)
        hidden = known.hidden[:, reading.kept][places]
        shifted = hidden + shift[places[rows]]
        return Ratios(places, self._between(network.lm_head(hidden), network.lm_head(shifted)))

    def _between(
        self, base: Float[Tensor, "places vocabulary"], edited: Float[Tensor, "places vocabulary"]
    ) -> Float[Tensor, "places tokens"]:
        before, after = (
            F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
            for logits in (base, edited)
        )
        return (after - before)[:, : self.token_count]

    def _logits(
        self, network: PreTrainedModel, reading: LogRatioBatch, cache: Cache | None
    ) -> Tensor:
        positions = reading.position_ids
        if positions is None and reading.mask is not None:
            # Padding on the left must not shift the positions of what follows it.
            counted = (reading.mask.long().cumsum(-1) - 1).clamp(min=0)
            positions = counted[:, -reading.ids.shape[1] :]
        logits: Tensor = network(
            input_ids=reading.ids,
            attention_mask=reading.mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=reading.kept,
        ).logits
        return logits

    def _check_length(self, reading: LogRatioBatch) -> None:
        past = 0 if reading.caches is None else reading.caches.base.get_seq_length()
        length, most = past + reading.ids.shape[1], self.small.context_length
        if length > most and reading.mask is not None:
            # Padding takes no position.
            length = int(reading.mask.sum(dim=1).max())
        if length > most:
            raise ConfigError(
                f"A text of {length} tokens exceeds the context of {self.small.id}, which reads "
                f"{most} at most. Use shorter texts, or a small model with a longer context."
            )

    def _check_tokens(self, reading: LogRatioBatch) -> None:
        known = int(self.small.network.config.vocab_size)
        if int(reading.ids.max()) >= known:
            raise ConfigError(
                f"The text has token {int(reading.ids.max())}, and {self.small.id} knows {known}. "
                "Leave out the special tokens of the large model."
            )
