"""Which texts of a pool are nearest to another, by the words that they share."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tuner.editing.model import LanguageModel

_COLUMNS = 256


def nearest_texts(
    model: LanguageModel, texts: Sequence[str], pool: Sequence[str], count: int
) -> list[list[int]]:
    """Return for each text the places of the `count` nearest of the pool, nearest first.

    Nearness is the cosine of TF-IDF vectors over the model's own tokens, with the pool's smoothed
    inverse frequencies log((1 + n) / (1 + df)) + 1. Ties go to the earlier place. A pool smaller
    than `count` is returned whole.

    Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval".
    """
    held = [Counter(model.encode(text)) for text in pool]
    frequency = Counter(token for tokens in held for token in tokens)
    columns = {token: column for column, token in enumerate(sorted(frequency))}
    idf = torch.tensor([frequency[token] for token in columns], dtype=torch.float64)
    idf = ((1 + len(held)) / (1 + idf)).log() + 1
    known = _vectors(held, columns, idf)
    asked = [Counter(model.encode(text)) for text in texts]
    found: list[list[int]] = []
    for at in range(0, len(asked), _COLUMNS):
        some = _vectors(asked[at : at + _COLUMNS], columns, idf).to_dense()
        cosine = torch.sparse.mm(known, some.T)
        order = cosine.argsort(dim=0, descending=True, stable=True)[:count]
        found += order.T.tolist()
    return found


def _vectors(
    counts: Sequence[Counter[int]], columns: dict[int, int], idf: Float[Tensor, " tokens"]
) -> Float[Tensor, "texts tokens"]:
    """Return TF-IDF vectors of length one, sparse; tokens that the pool lacks do not count."""
    entries = [
        (row, columns[token], number)
        for row, tokens in enumerate(counts)
        for token, number in tokens.items()
        if token in columns
    ]
    place = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).T
    values = torch.tensor([entry[2] for entry in entries], dtype=torch.float64) * idf[place[1]]
    squares = torch.zeros(len(counts), dtype=torch.float64).index_add(0, place[0], values**2)
    values = values / squares.sqrt()[place[0]]
    return torch.sparse_coo_tensor(place, values, (len(counts), len(columns))).coalesce()
