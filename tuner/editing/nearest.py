"""Which texts of a pool are nearest to another, by the words that they share."""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from tuner.editing.model import LanguageModel


def nearest_texts(
    model: LanguageModel, texts: Sequence[str], pool: Sequence[str], count: int
) -> list[list[int]]:
    """Return for each text the places of the `count` nearest of the pool, nearest first.

    Nearness is the cosine of TF-IDF vectors over the model's own tokens, with the pool's smoothed
    inverse frequencies log((1 + n) / (1 + df)) + 1; tokens that the pool lacks do not count. Ties
    go to the earlier place. A pool smaller than `count` is returned whole.

    Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval".
    """
    held = [_tokens(model, text) for text in pool]
    frequency = Counter(token for tokens in held for token in tokens)
    idf = {token: math.log((1 + len(pool)) / (1 + df)) + 1 for token, df in frequency.items()}
    places: dict[int, list[int]] = {token: [] for token in frequency}
    weights: dict[int, list[float]] = {token: [] for token in frequency}
    for place, tokens in enumerate(held):
        length = math.hypot(*(number * idf[token] for token, number in tokens.items()))
        for token, number in tokens.items():
            places[token].append(place)
            weights[token].append(number * idf[token] / length)
    # A text's own length scales all its cosines alike, so the order does without it.
    found: list[list[int]] = []
    for text in texts:
        cosine = torch.zeros(len(pool), dtype=torch.float64)
        for token, number in _tokens(model, text).items():
            if token in idf:
                share = torch.tensor(weights[token], dtype=torch.float64) * number * idf[token]
                cosine.index_add_(0, torch.tensor(places[token]), share)
        found.append(cosine.argsort(descending=True, stable=True)[:count].tolist())
    return found


def _tokens(model: LanguageModel, text: str) -> Counter[int]:
    # Most tokenizers tell a text's first word from the same word behind a space.
    return Counter(model.encode(f" {text.strip()}"))
