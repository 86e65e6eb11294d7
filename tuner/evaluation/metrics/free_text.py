"""How fluently a model goes on by itself, and whether what it says fits its subject."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
import torch

from tuner.editing.generation import generate_sampled
from tuner.editing.likelihood import in_length_order
from tuner.editing.model import LanguageModel
from tuner.editing.task import GenerationPrompt
from tuner.errors import TaskError

PUBLISHED_LENGTH = 100
_BATCH = 64


def ngram_entropy(text: str) -> float:
    """Return ½(⅔·H₂ + 4/3·H₃), Hₙ the entropy of a text's n-grams of words, in bits.

    Text that repeats itself has few different n-grams and so a low entropy. Words and
    punctuation marks count one each; the published figures split with nltk, which treats a few
    contractions otherwise.

    Source: Meng et al. 2022 (arXiv:2202.05262), §3.4 and their code, which sets the weights.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    grams = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = grams.total()
    return math.fsum(-count / total * math.log2(count / total) for count in grams.values())


@final
class Tfidf:
    """Cosines of texts, a word weighing its count times its rarity in a set of documents.

    The rarity of a word in d of n documents is ln((1 + n) / (1 + d)) + 1; a word of none of them
    is the rarest. Words are lower-cased and of two letters at least.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        words = [set(_words(document)) for document in documents]
        self._count = len(words)
        self._seen_in = Counter(word for found in words for word in found)

    def cosine(self, one: str, other: str) -> float:
        """Return the similarity of two texts, from 0 to 1; 0 where one of them has no word."""
        left, right = self._weights(one), self._weights(other)
        length = math.hypot(*left.values()) * math.hypot(*right.values())
        shared = math.fsum(left[word] * right[word] for word in left.keys() & right.keys())
        return shared / length if length else 0.0

    def _weights(self, text: str) -> dict[str, float]:
        return {word: count * self._rarity(word) for word, count in Counter(_words(text)).items()}

    def _rarity(self, word: str) -> float:
        return math.log((1 + self._count) / (1 + self._seen_in[word])) + 1


def _words(text: str) -> list[str]:
    return re.findall(r"\w\w+", text.lower())


@final
class FreeTextMeter:
    """Judges what a model says after the generation prompts of a split.

    Each text is its prompt and what was sampled after it (from the five likeliest tokens, by a
    generator of its own that starts anew each time), up to 100 tokens in all as published, or an
    eighth of the model's context where that is less. The end of a document does not end it, as in
    the published code.

    Fluency is 100 · the mean `ngram_entropy`; consistency is 100 · the mean TF-IDF cosine of a
    record's texts, joined, with its references, joined. Both are averaged over records. The
    published word rarities come from Wikipedia, these from the split's references, so consistency
    compares models on one split and not with published figures.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[GenerationPrompt],
        *,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._seed = seed
        self._length = length or min(PUBLISHED_LENGTH, model.context_length // 8)
        self._prompts = model.encode_prompts([row.prompt for row in prompts])
        longest = max(range(len(prompts)), key=lambda row: len(self._prompts[row]))
        if len(self._prompts[longest]) >= self._length:
            raise TaskError(
                f"A generation prompt must be shorter than the {self._length} tokens that prompt "
                f"and text may have together, but got {len(self._prompts[longest])} tokens: "
                f"{prompts[longest].prompt[:60]!r}."
            )
        self._records: defaultdict[str, list[int]] = defaultdict(list)
        references: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for number, row in enumerate(prompts):
            self._records[row.record].append(number)
            # The prompts of a record may repeat its references; each counts once.
            references[row.record].update(dict.fromkeys(row.references))
        self._references = {record: " ".join(texts) for record, texts in references.items()}
        self._tfidf = Tfidf({text: None for texts in references.values() for text in texts})

    def measure(self) -> tuple[float, float | None]:
        """Return fluency and consistency; the second is None where there are no references."""
        texts = self.texts()
        fluency, consistency = [], []
        for record, rows in self._records.items():
            fluency.append(float(np.mean([ngram_entropy(texts[row]) for row in rows])))
            if self._references[record]:
                said = " ".join(texts[row] for row in rows)
                consistency.append(self._tfidf.cosine(said, self._references[record]))
        return (
            100 * float(np.mean(fluency)),
            100 * float(np.mean(consistency)) if consistency else None,
        )

    def texts(self) -> list[str]:
        """Return the text of each prompt, the prompt included."""
        random = torch.Generator().manual_seed(self._seed)
        texts = [""] * len(self._prompts)
        for batch in in_length_order([len(prompt) for prompt in self._prompts], _BATCH):
            rows = [self._prompts[row] for row in batch]
            said = generate_sampled(self._model, rows, self._length, random)
            for row, prompt, words in zip(batch, rows, said, strict=True):
                texts[row] = str(
                    self._model.tokenizer.decode([*prompt, *words], skip_special_tokens=True)
                )
        return texts
