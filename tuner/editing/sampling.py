"""Text that the unedited model writes itself, to stand before prompts."""

import json
from collections.abc import Iterator, Sequence

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError
from tuner.files.cache import Cache, Key

_BATCH = 64


def prepend(model: LanguageModel, prefix: str, prompt: str) -> str:
    """Return `prompt` as a sentence of its own after `prefix`; after no text, just the prompt.

    The mark that a rendered chat template begins with stays in front of all.

    Source: the contexts of Meng et al. 2022 (arXiv:2202.05262) and Gangadhar and Stratos 2024
    (arXiv:2402.11078).
    """
    if not prefix:
        return prompt
    mark = model.texts.mark if prompt.startswith(model.texts.mark) else ""
    return f"{mark}{prefix}. {prompt[len(mark) :]}"


def sample_prefixes(
    model: LanguageModel,
    starts: Sequence[str],
    *,
    new_tokens: Sequence[int] | int,
    top_k: int,
    seed: int,
    cache: Cache | None,
) -> tuple[str, ...]:
    """Return one continuation per start, the start included, without surrounding white space.

    Each token is drawn among the `top_k` likeliest, by their probabilities. The start "" means:
    from what the model reads before any text, its end-of-text token. That token itself is never
    drawn, so every prefix is `new_tokens` long (one number for all, or one per start). Only white
    space leaves an empty prefix. No global random state is read or changed.

    Raises:
        ConfigError: there are not as many lengths as starts, a number is below 1, or a prefix
            would exceed the model's context.
    """
    counts = [new_tokens] * len(starts) if isinstance(new_tokens, int) else list(new_tokens)
    if len(counts) != len(starts) or min([top_k, *counts]) < 1:
        raise ConfigError(
            "A prefix needs a length of at least 1 per start and top_k ≥ 1, but got "
            f"{len(starts)} starts, {new_tokens=} and {top_k=}."
        )
    key: Key = {
        "version": 2,  # of the sampling itself
        "model": model.fingerprint,
        "device": model.device_name,
        "attention": model.kernel,
        "libraries": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "starts": json.dumps(list(starts)),
        "new_tokens": json.dumps(counts),
        "top_k": top_k,
        "seed": seed,
    }
    known = cache.load("prefixes", key) if cache else None
    if known is not None:
        return tuple(json.loads(bytes(known["json"].tolist())))
    prefixes = _sample(model, starts, counts, top_k, seed)
    if cache:
        content = torch.tensor(list(json.dumps(prefixes).encode()), dtype=torch.uint8)
        cache.save("prefixes", key, {"json": content})
    return prefixes


def _sample(
    model: LanguageModel, starts: Sequence[str], counts: Sequence[int], top_k: int, seed: int
) -> tuple[str, ...]:
    longest = max(counts, default=0)
    prompts = model.encode_prompts(starts)
    if max(map(len, prompts), default=0) + longest > model.context_length:
        raise ConfigError(
            f"A prefix of {longest} new tokens exceeds the model's context of "
            f"{model.context_length}."
        )
    # All chance is drawn first and on the host: batches and devices cannot shift it.
    chances = torch.rand(
        (len(starts), longest), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    written = [""] * len(starts)
    begun = model.texts.encode(starts)
    for rows in _of_equal_length(prompts):
        ids = torch.tensor([prompts[row] for row in rows], device=model.device)
        new = _continue(model, ids, chances[rows], top_k).tolist()
        for row, tokens in zip(rows, new, strict=True):
            # Start and continuation are decoded together: alone, a first token may lose its space.
            text = model.tokenizer.decode(
                [*begun[row], *tokens[: counts[row]]], skip_special_tokens=True
            )
            written[row] = str(text).strip()
    return tuple(written)


def _of_equal_length(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield batches of row numbers whose prompts are equally long, so that none is padded."""
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        yield from (rows[at : at + _BATCH] for at in range(0, len(rows), _BATCH))


@torch.no_grad()
def _continue(
    model: LanguageModel,
    ids: Int[Tensor, "rows start"],
    chances: Float[Tensor, "rows new"],
    top_k: int,
) -> Int[Tensor, "rows new"]:
    """Return the drawn tokens; `chances` are uniform in [0, 1), one per token."""
    start = ids.shape[1]
    # Prefixes are a few tokens long: reading them anew costs less than keeping a cache of keys.
    for chance in chances.T:
        logits = model.network(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
        logits[:, model.end_id] = -torch.inf
        likeliest = logits.topk(min(top_k, logits.shape[1] - 1))
        share = likeliest.values.double().cpu().softmax(-1).cumsum(-1)
        # Rounding may leave the last share a little under one.
        place = (share <= chance[:, None]).sum(-1, keepdim=True).clamp(max=share.shape[1] - 1)
        ids = torch.cat([ids, likeliest.indices.gather(1, place.to(ids.device))], dim=1)
    return ids[:, start:]
