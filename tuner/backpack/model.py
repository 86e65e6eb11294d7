"""The Backpack language model (Hewitt et al. 2023, arXiv:2305.16765)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, GPT2Model, GPT2PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.pytorch_utils import Conv1D

from tuner.backpack.cache_layers import append_layer
from tuner.backpack.configuration import BackpackConfig
from tuner.backpack.contextualisation import Contextualisation, mix
from tuner.backpack.contextualisation_cache import ContextualisationCache, Remembered
from tuner.backpack.offsets import SenseOffsets
from tuner.errors import ConfigError


class _SenseMlp(nn.Module):
    def __init__(self, config: BackpackConfig, outputs: int) -> None:
        super().__init__()
        hidden = config.sense_intermediate_scale * config.n_embd
        self.c_fc = Conv1D(hidden, config.n_embd)
        self.c_proj = Conv1D(outputs, hidden)
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(hidden))))
        return out


class _SenseBlock(nn.Module):
    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = _SenseMlp(config, config.n_embd)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        # What a transformer block would mix over positions passes as it is.
        residual = hidden + residual
        residual = self.mlp(self.ln_1(residual)) + residual
        out: Tensor = self.ln_2(residual)
        return out


@final
class SenseNetwork(nn.Module):
    """The senses of a token: a function of its embedding alone, not of its place."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self._senses = config.num_senses
        self.ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.block = _SenseBlock(config)
        self.final_mlp = _SenseMlp(config, config.num_senses * config.n_embd)

    def forward(
        self, embeddings: Float[Tensor, "*places width"]
    ) -> Float[Tensor, "*places senses width"]:
        """Return the sense vectors of each embedding."""
        flat: Tensor = self.final_mlp(self.block(self.ln(embeddings), embeddings))
        return flat.reshape(*embeddings.shape[:-1], self._senses, -1)


class _SenseWeights(nn.Module):
    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self._senses = config.num_senses
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys, batch × senses × positions × key width."""
        both = self.c_attn(hidden).unflatten(-1, (2, self._senses, -1))
        query, key = both.permute(2, 0, 3, 1, 4)
        return query, key


class BackpackPreTrainedModel(GPT2PreTrainedModel):  # type: ignore[misc]
    """Loading and initialisation, as GPT-2 has them."""

    config: BackpackConfig
    config_class = BackpackConfig
    base_model_prefix = "backpack"
    # Published checkpoints hold causal masks as buffers, and aliases of the tied embeddings.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers declares it so
        r"\.attn\.bias$",
        r"\.attn\.masked_bias$",
        r"(^|\.)word_embeddings\.weight$",
        r"(^|\.)position_embeddings\.weight$",
    ]


@final
class BackpackModel(BackpackPreTrainedModel):
    """Sense vectors of tokens, and a GPT-2 that says how to weigh them."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__(config)
        self.gpt2_model = GPT2Model(config)
        self.sense_network = SenseNetwork(config)
        self.sense_weight_net = _SenseWeights(config)
        self.memory: ContextualisationCache | None = None
        """What makes it cheap to try many edits of senses on the same texts; off by default."""
        self.offsets: SenseOffsets | None = None
        if config.sense_offsets:
            self.offsets = SenseOffsets(
                torch.zeros(config.sense_offsets, 2, dtype=torch.long),
                torch.zeros(config.sense_offsets, config.n_embd),
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings, which are the output's as well."""
        embeddings: nn.Embedding = self.gpt2_model.wte
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.gpt2_model.wte = value

    def senses(self, ids: Int[Tensor, "*places"]) -> Float[Tensor, "*places senses width"]:
        """Return the sense vectors of tokens, offsets included."""
        # Each token once: a batch repeats few types many times.
        tokens, place = torch.unique(ids, return_inverse=True)
        vectors: Tensor = self.sense_network(self.gpt2_model.wte(tokens))
        if self.offsets is not None:
            added = self.offsets.at(tokens, self.config.num_senses)
            vectors = vectors + added.to(vectors.dtype)
        return vectors[place]

    @torch.no_grad()
    def sense_table(self, batch: int = 4096) -> Float[Tensor, "vocabulary senses width"]:
        """Return the sense vectors of the whole vocabulary."""
        ids = torch.arange(self.config.vocab_size, device=self.device)
        return torch.cat([self.senses(part) for part in torch.split(ids, batch)])

    @contextmanager
    def with_offsets(self, offsets: SenseOffsets | None) -> Iterator[None]:
        """Hold `offsets` instead of the model's own inside the context."""
        own, count = self.offsets, self.config.sense_offsets
        try:
            self.set_offsets(offsets)
            yield
        finally:
            self.offsets, self.config.sense_offsets = own, count

    def set_offsets(self, offsets: SenseOffsets | None) -> None:
        """Put `offsets` instead of the model's own, for good."""
        self.offsets = offsets
        self.config.sense_offsets = 0 if offsets is None else len(offsets.pairs)

    @torch.no_grad()
    def recall(
        self, ids: Int[Tensor, "batch length"], mask: Int[Tensor, "batch length"] | None = None
    ) -> Remembered:
        """Return what the model without offsets says of a batch, from memory where possible."""

        def read() -> Remembered:
            with self.with_offsets(None):
                context = self.contextualise(ids, attention_mask=mask)
                scores, senses = context.scores(), self.senses(ids)
            hidden = mix(torch.softmax(scores, dim=-1).to(senses.dtype), senses)
            return Remembered(ids, context, scores.logsumexp(dim=-1), hidden)

        if self.memory is None:
            return read()
        return self.memory.recall(tuple(self._own_weights()), ids, mask, read)

    def _own_weights(self) -> Iterator[nn.Parameter]:
        for part in (self.gpt2_model, self.sense_network, self.sense_weight_net):
            yield from part.parameters()

    def contextualise(
        self,
        input_ids: Int[Tensor, "batch positions"],
        *,
        attention_mask: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "batch positions"] | None = None,
        past_key_values: Cache | None = None,
    ) -> Contextualisation:
        """Return how each position weighs the senses; with a cache, the keys are the new ones.

        Raises:
            ConfigError: the text is longer than the model has positions.
        """
        contextualisation, _ = self._contextualise(
            input_ids, attention_mask, position_ids, past_key_values
        )
        return contextualisation

    def _contextualise(
        self,
        input_ids: Int[Tensor, "batch positions"],
        attention_mask: Int[Tensor, "batch length"] | None,
        position_ids: Int[Tensor, "batch positions"] | None,
        past_key_values: Cache | None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[Contextualisation, BaseModelOutputWithPast]:
        """Return the contextualisation, and the output of the GPT-2 that it was made from."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = past + input_ids.shape[1]
        places = torch.arange(length, device=input_ids.device)
        allowed = (places <= places[past:, None])[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, None, :length].bool()
            if position_ids is None:
                # Padding on the left must not shift the positions of what follows it.
                counted = attention_mask[:, :length].long().cumsum(-1) - 1
                position_ids = counted.clamp(min=0)[:, past:]
        self._check_positions(length, position_ids)
        # Not `input_ids`: GPT-2 would take the end-of-text tokens of general text for padding.
        read: BaseModelOutputWithPast = self.gpt2_model(
            inputs_embeds=self.gpt2_model.wte(input_ids),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        query, key = self.sense_weight_net(read.last_hidden_state)
        return Contextualisation(query, key, allowed), read

    def _check_positions(
        self, length: int, position_ids: Int[Tensor, "batch positions"] | None
    ) -> None:
        most = self.config.n_positions
        # Padding takes no position.
        needed = length if position_ids is None else int(position_ids.max()) + 1
        if needed > most:
            raise ConfigError(
                f"A text must fit the {most} positions of the Backpack, but got one of {needed} "
                "tokens. Shorten it, or ask for fewer new tokens."
            )

    def forward(
        self,
        input_ids: Int[Tensor, "batch positions"],
        attention_mask: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "batch positions"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        positions_to_keep: int | Tensor = 0,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states, of some positions only if asked, and the cache.

        Further hidden states and attentions are those of the GPT-2, at all positions.

        Raises:
            ConfigError: the text is longer than the model has positions.
        """
        states = _asked(output_hidden_states, self.config.output_hidden_states)
        attentions = _asked(output_attentions, self.config.output_attentions)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        kept = slice_logits_to_keep(positions[None, :, None], positions_to_keep)[0, :, 0]
        use_cache = self.config.use_cache if use_cache is None else use_cache
        # An empty cache is false, and must be filled all the same.
        given = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        cache = given if use_cache else None
        offsets = self._offsets_served_from_memory
        plain = cache is None and position_ids is None and not states and not attentions
        read = BaseModelOutputWithPast()
        if plain and offsets is not None:
            known = self.recall(input_ids, attention_mask)
            hidden = known.hidden[:, kept]
            rows, shift = known.shift(offsets, kept, self.config.num_senses)
            hidden[rows] += shift
        else:
            context, read = self._contextualise(
                input_ids,
                attention_mask,
                position_ids,
                cache,
                output_hidden_states=states,
                output_attentions=attentions,
            )
            senses = self.senses(input_ids)
            if cache is not None:
                context, senses = self._extended(context, senses, cache)
            hidden = mix(context.at(kept).weights(), senses)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
        )

    @property
    def _offsets_served_from_memory(self) -> SenseOffsets | None:
        # A model without offsets is read no more often than its weights change.
        return None if self.memory is None or torch.is_grad_enabled() else self.offsets

    def _extended(
        self, context: Contextualisation, senses: Tensor, cache: Cache
    ) -> tuple[Contextualisation, Tensor]:
        """Return keys and senses of all positions so far.

        They are kept as one more layer of the cache, so that whatever transformers does to a
        cache (beams, cropping) is done to them too.
        """
        layer = self.config.n_layer
        if len(cache.layers) == layer:
            append_layer(cache)
        keys, values = cache.update(context.key, senses.transpose(1, 2), layer)
        return Contextualisation(context.query, keys, context.allowed), values.transpose(1, 2)


@final
class BackpackForCausalLM(BackpackPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A Backpack with its output embeddings, which are its input embeddings.

    State-dict names and shapes are those of the published `stanfordnlp/backpack-gpt2`.
    """

    _tied_weights_keys = {"lm_head.weight": "backpack.gpt2_model.wte.weight"}  # noqa: RUF012

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__(config)
        self.backpack = BackpackModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch positions"],
        attention_mask: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "batch positions"] | None = None,
        past_key_values: Cache | None = None,
        labels: Int[Tensor, "batch positions"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return logits, the loss if `labels` are given, and the cache if it is used.

        Hidden states and attentions are those of the contextualiser, at all positions. What is
        not given is as in the configuration. Further keywords are for the loss.

        Raises:
            ConfigError: the text is longer than the model has positions.
        """
        read = self.backpack(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            positions_to_keep=logits_to_keep,
        )
        logits = self.lm_head(read.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=read.past_key_values,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
        )
        return output if _asked(return_dict, self.config.return_dict) else output.to_tuple()


def _asked(given: bool | None, configured: bool) -> bool:
    """Return what a call asks for: what it says, else what the configuration does."""
    return configured if given is None else given
