"""What a built-in model gives to targets and to text, when tasks and cards are made."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.editing import likelihood
from tuner.editing.likelihood import (
    Continuation,
    continuation_losses,
    encode_continuations,
    in_length_order,
    predicted_tokens,
)
from tuner.editing.model import LanguageModel

_BATCH = 32


class Completion(NamedTuple):
    """A prompt and what should follow it."""

    prompt: str
    target: str


def target_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[float]:
    """Return -log p(target | prompt), summed over the target's tokens, for every row."""
    return _losses(*_encoded(model, tokenizer, rows))


def mean_target_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[float]:
    """Return -log p(target | prompt) per token of the target, for every row."""
    language_model, encoded = _encoded(model, tokenizer, rows)
    sums = _losses(language_model, encoded)
    return [loss / row.target_length for loss, row in zip(sums, encoded, strict=True)]


def token_accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[float]:
    """Return the share of each target's tokens that are the likeliest ones, teacher-forced."""
    language_model, encoded = _encoded(model, tokenizer, rows)
    shares = []
    for row in encoded:
        (likeliest,) = predicted_tokens(model, [row], language_model.end_id)
        target = torch.tensor(row.ids[row.start :])
        shares.append(float((likeliest == target).float().mean()))
    return shares


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Return -log p of every token but the first, for a batch of sequences."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return likelihood.token_losses(logits, batch[:, 1:])


@torch.no_grad()
def _losses(model: LanguageModel, encoded: Sequence[Continuation]) -> list[float]:
    losses = [0.0] * len(encoded)
    for batch in in_length_order([len(one.ids) for one in encoded], _BATCH):
        of_batch = continuation_losses(model.network, [encoded[i] for i in batch], model.end_id)
        for i, loss in zip(batch, of_batch.tolist(), strict=True):
            losses[i] = loss
    return losses


def _encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> tuple[LanguageModel, list[Continuation]]:
    language_model = LanguageModel(model, tokenizer, id="the model of the built-in world")
    return language_model, encode_continuations(language_model, [tuple(row) for row in rows])
