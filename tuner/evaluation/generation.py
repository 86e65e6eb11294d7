"""What a model says when nobody holds its hand: greedy generation in batches."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from tuner.editing.model import LanguageModel


@torch.no_grad()
def generate_greedily(
    model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """Return the tokens that follow each prompt, at most `new_tokens` of each.

    Prompts are padded on the left, so that all continuations start in the same column.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.end_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = model.network.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        # The model's own settings may hold penalties or sampling: plain greedy is meant.
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=model.end_id,
            pad_token_id=model.end_id,
        ),
    )
    return [[int(token) for token in row] for row in output[:, width:]]
