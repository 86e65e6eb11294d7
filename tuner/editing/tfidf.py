"""Which texts of a pool are nearest to another, by the words that they share."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch

from tuner.editing.model import LanguageModel

_Term = TypeVar("_Term", bound=Hashable)


@final
@dataclass(frozen=True)
class Near:
    """A text of the pool, by its place, and how near it is: 1 for the same terms, 0 for none."""

    place: int
    cosine: float


def nearest_texts(
    model: LanguageModel, texts: Sequence[str], pool: Sequence[str], count: int
) -> list[list[int]]:
    """Return for each text the places of the `count` nearest of the pool, nearest first.

    Nearness is that of `nearest_terms` over the model's own tokens.
    """
    found = nearest_terms(_words(model, texts), _words(model, pool), count)
    return [[near.place for near in nearest] for nearest in found]


def _words(model: LanguageModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens that each text has within another.

    Most tokenizers tell a text's first word from the same word behind a blank.
    """
    return [found.parts[1] for found in model.read([(".", f" {text.strip()}") for text in texts])]


def nearest_terms(
    texts: Iterable[Sequence[_Term]], pool: Sequence[Sequence[_Term]], count: int
) -> Iterator[list[Near]]:
    """Yield for each text, given as its terms, the `count` nearest of the pool, nearest first.

    Nearness is the cosine of TF-IDF vectors, with the pool's smoothed inverse frequencies
    log((1 + n) / (1 + df)) + 1; terms that the pool lacks do not count. Ties go to the earlier
    place. A pool smaller than `count` is returned whole.

    Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval".
    """
    held = [Counter(terms) for terms in pool]
    frequency = Counter(term for terms in held for term in terms)
    idf = {term: math.log((1 + len(pool)) / (1 + df)) + 1 for term, df in frequency.items()}
    places: dict[_Term, list[int]] = {term: [] for term in frequency}
    weights: dict[_Term, list[float]] = {term: [] for term in frequency}
    for place, terms in enumerate(held):
        length = math.hypot(*(number * idf[term] for term, number in terms.items()))
        for term, number in terms.items():
            places[term].append(place)
            weights[term].append(number * idf[term] / length)
    columns = {term: torch.tensor(found) for term, found in places.items()}
    shares = {term: torch.tensor(found, dtype=torch.float64) for term, found in weights.items()}
    for text in texts:
        known = {term: n * idf[term] for term, n in Counter(text).items() if term in idf}
        products = torch.zeros(len(pool), dtype=torch.float64)
        for term, weight in known.items():
            products.index_add_(0, columns[term], shares[term] * weight)
        # A text's own length scales all its cosines alike, so the order does without it.
        order = products.argsort(descending=True, stable=True)[:count]
        length = math.hypot(*known.values()) or 1.0
        yield [
            Near(place, product / length)
            for place, product in zip(order.tolist(), products[order].tolist(), strict=True)
        ]
