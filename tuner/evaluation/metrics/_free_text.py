"""How fluently a model goes on by itself, and whether what it says fits its subject."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from tuner.editing.generation import generate_sampled
from tuner.editing.likelihood import in_length_order
from tuner.editing.model import LanguageModel
from tuner.editing.task import GenerationPrompt
from tuner.editing.tfidf import Tfidf
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
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return (2 / 3 * _entropy(tokens, 2) + 4 / 3 * _entropy(tokens, 3)) / 2


def _entropy(tokens: Sequence[str], n: int) -> float:
    grams = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    total = grams.total()
    return math.fsum(-count / total * math.log2(count / total) for count in grams.values())


def words(text: str) -> list[str]:
    """Return the words that TF-IDF counts: lower-cased, of two letters at least."""
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
        different = {text: None for texts in references.values() for text in texts}
        self._tfidf = Tfidf(words(text) for text in different)

    def measure(self) -> tuple[float, float | None]:
        """Return fluency and consistency; the second is None where there are no references."""
        texts = self.texts()
        fluency, consistency = [], []
        for record, rows in self._records.items():
            fluency.append(float(np.mean([ngram_entropy(texts[row]) for row in rows])))
            if self._references[record]:
                said = " ".join(texts[row] for row in rows)
                consistency.append(self._tfidf.cosine(words(said), words(self._references[record])))
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
            for row, prompt, new in zip(batch, rows, said, strict=True):
                texts[row] = str(
                    self._model.tokenizer.decode([*prompt, *new], skip_special_tokens=True)
                )
        return texts
