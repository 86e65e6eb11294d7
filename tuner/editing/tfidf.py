"""TF-IDF: how near two texts are by the words that they share, and which of a pool are nearest."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import torch

from tuner.editing.model import LanguageModel

_Term = TypeVar("_Term", bound=Hashable)


@final
class Tfidf(Generic[_Term]):
    """Weights of terms by a set of documents: a term's count times its inverse frequency.

    The inverse frequency of a term in df of n documents is smoothed: log((1 + n) / (1 + df)) + 1;
    a term in none of them (not `in` this object) has the highest.

    Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval".
    """

    def __init__(self, documents: Iterable[Iterable[_Term]]) -> None:
        terms = [set(document) for document in documents]
        frequency = Counter(term for document in terms for term in document)
        self._unseen = math.log(1 + len(terms)) + 1
        self._idf = {
            term: math.log((1 + len(terms)) / (1 + df)) + 1 for term, df in frequency.items()
        }

    def __contains__(self, term: _Term) -> bool:
        return term in self._idf

    def weights(self, terms: Iterable[_Term]) -> dict[_Term, float]:
        """Return the weight of each term of a text."""
        return {
            term: number * self._idf.get(term, self._unseen)
            for term, number in Counter(terms).items()
        }

    def cosine(self, one: Iterable[_Term], other: Iterable[_Term]) -> float:
        """Return the similarity of two texts, from 0 to 1; 0 where one of them has no term."""
        left, right = self.weights(one), self.weights(other)
        length = math.hypot(*left.values()) * math.hypot(*right.values())
        shared = math.fsum(left[term] * right[term] for term in left.keys() & right.keys())
        return shared / length if length else 0.0


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
    neighbours = nearest_terms(_words(model, texts), _words(model, pool), count)
    return [[near.place for near in nearest] for nearest in neighbours]


def _words(model: LanguageModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens that each text has within another.

    Most tokenizers tell a text's first word from the same word behind a blank.
    """
    return [pieces.parts[1] for pieces in model.read([(".", f" {text.strip()}") for text in texts])]


def nearest_terms(
    texts: Iterable[Sequence[_Term]], pool: Sequence[Sequence[_Term]], count: int
) -> Iterator[list[Near]]:
    """Yield for each text, given as its terms, the `count` nearest of the pool, nearest first.

    Nearness is the cosine of `Tfidf` vectors, weighted by the pool; terms that the pool lacks do
    not count. Ties go to the earlier place. A pool smaller than `count` is returned whole.
    """
    tfidf = Tfidf(pool)
    columns: dict[_Term, list[int]] = {}
    shares: dict[_Term, list[float]] = {}
    for place, terms in enumerate(pool):
        weights = tfidf.weights(terms)
        length = math.hypot(*weights.values())
        for term, weight in weights.items():
            columns.setdefault(term, []).append(place)
            shares.setdefault(term, []).append(weight / length)
    places = {term: torch.tensor(of_term) for term, of_term in columns.items()}
    unit = {term: torch.tensor(of_term, dtype=torch.float64) for term, of_term in shares.items()}
    for text in texts:
        known = tfidf.weights(term for term in text if term in tfidf)
        products = torch.zeros(len(pool), dtype=torch.float64)
        for term, weight in known.items():
            products.index_add_(0, places[term], unit[term] * weight)
        # A text's own length scales all its cosines alike, so the order does without it.
        order = products.argsort(descending=True, stable=True)[:count]
        length = math.hypot(*known.values()) or 1.0
        yield [
            Near(place, product / length)
            for place, product in zip(order.tolist(), products[order].tolist(), strict=True)
        ]
