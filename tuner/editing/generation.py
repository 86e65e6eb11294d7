"""Free-running generation (no teacher forcing), in batches, greedy or sampled."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tuner.editing.model import LanguageModel
from tuner.editing.prompts import prompts_end_at


@torch.no_grad()
def generate_greedily(
    model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """Return the tokens that follow each prompt, at most `new_tokens` of each."""
    ids, mask = _padded_on_the_left(model, prompts)
    said = model.continue_greedily(ids, mask, new_tokens)
    return [[int(token) for token in row] for row in said]


@torch.no_grad()
def generate_sampled(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    length: int,
    random: torch.Generator,
    *,
    top_k: int = 5,
) -> list[list[int]]:
    """Return tokens sampled after each prompt until both together are `length` tokens long.

    Each token is drawn from the `top_k` likeliest, in proportion to their probabilities, with
    `random` alone (a generator on the CPU), so it leaves all other randomness as it was. The end
    of a document is a token like others. Prompts must be shorter than `length`.
    """
    ids, mask = _padded_on_the_left(model, prompts)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    said = []
    past = None
    with prompts_end_at(ids.shape[1]):
        for _ in range(length - min(len(prompt) for prompt in prompts)):
            # Own steps: `generate` knows no generator, and takes settings that come with a model.
            output = model.network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past = output.past_key_values
            highest, tokens = output.logits[:, -1].float().topk(top_k)
            # The largest of log p plus Gumbel noise is a draw from p.
            noise = -torch.empty(highest.shape).exponential_(generator=random).log()
            ids = tokens.gather(1, (highest + noise.to(model.device)).argmax(dim=1, keepdim=True))
            mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
            positions = positions[:, -1:] + 1
            said.append(ids)
    rows = torch.cat(said, dim=1).tolist()
    return [row[: length - len(prompt)] for row, prompt in zip(rows, prompts, strict=True)]


def _padded_on_the_left(
    model: LanguageModel, prompts: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "prompts width"], Int[Tensor, "prompts width"]]:
    """Return token ids and their mask; all continuations start in the same column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.end_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(model.device), mask.to(model.device)
