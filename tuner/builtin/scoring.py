"""What a language model gives to targets and to text; only as much as building tasks needs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 32


class Completion(NamedTuple):
    """A prompt and what should follow it."""

    prompt: str
    target: str


def target_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[float]:
    """Return -log p(target | prompt), summed over the target's tokens, for every row.

    Prompt and target are tokenised apart and joined, without a token before them.
    """
    prompts = _ids(tokenizer, [row.prompt for row in rows])
    targets = _ids(tokenizer, [row.target for row in rows])
    by_length = sorted(range(len(rows)), key=lambda i: len(prompts[i]) + len(targets[i]))
    losses = [0.0] * len(rows)
    for start in range(0, len(rows), _BATCH):
        indices = by_length[start : start + _BATCH]
        width = max(len(prompts[i]) + len(targets[i]) for i in indices)
        batch = torch.zeros(len(indices), width, dtype=torch.long)
        # Padding stands behind the target, where a causal model cannot see it.
        counted = torch.zeros(len(indices), width, dtype=torch.bool)
        for row, i in enumerate(indices):
            end = len(prompts[i]) + len(targets[i])
            batch[row, :end] = torch.tensor(prompts[i] + targets[i])
            counted[row, len(prompts[i]) : end] = True
        sums = (token_losses(model, batch) * counted[:, 1:]).sum(1)
        for i, loss in zip(indices, sums.tolist(), strict=True):
            losses[i] = loss
    return losses


def mean_target_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[float]:
    """Return -log p(target | prompt) per token of the target, for every row."""
    sums = target_losses(model, tokenizer, rows)
    counts = [len(ids) for ids in _ids(tokenizer, [row.target for row in rows])]
    return [loss / count for loss, count in zip(sums, counts, strict=True)]


@torch.no_grad()
def token_accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[float]:
    """Return the share of each target's tokens that are the likeliest ones, teacher-forced."""
    shares = []
    for prompt, target in zip(
        _ids(tokenizer, [row.prompt for row in rows]),
        _ids(tokenizer, [row.target for row in rows]),
        strict=True,
    ):
        logits = model(input_ids=torch.tensor([prompt + target]), use_cache=False).logits[0]
        likeliest = logits[len(prompt) - 1 : -1].argmax(-1)
        shares.append(float((likeliest == torch.tensor(target)).float().mean()))
    return shares


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Return -log p of every token but the first, for a batch of sequences."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
