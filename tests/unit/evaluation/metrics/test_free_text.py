"""Fluency and consistency, against values worked out by hand; sampling, against its definition."""

import math
from collections import Counter

import pytest
import torch

from tuner.editing.generation import generate_sampled
from tuner.editing.model import LanguageModel
from tuner.editing.task import GenerationPrompt
from tuner.editing.tfidf import Tfidf
from tuner.errors import TaskError
from tuner.evaluation.metrics._free_text import FreeTextMeter, ngram_entropy, words


def test_entropy_of_known_texts() -> None:
    # Bigrams: a·b b·a a·b b·c, so ½, ¼, ¼: 1.5 bits. Trigrams: aba bab abc: log2 3 bits.
    assert ngram_entropy("a b a b c") == pytest.approx((2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2)
    assert ngram_entropy("so so so so so") == 0.0
    assert ngram_entropy("") == 0.0
    # A mark is a word of its own: five pieces, four bigrams, three trigrams, all different.
    assert ngram_entropy("Yes, it is.") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)


def test_cosine_by_hand() -> None:
    tfidf = Tfidf(words(text) for text in ("big town", "big city"))
    rare, common, unseen = math.log(3 / 2) + 1, math.log(3 / 3) + 1, math.log(3 / 1) + 1

    def cosine(one: str, other: str) -> float:
        return tfidf.cosine(words(one), words(other))

    # "a" is too short to count, and case does not.
    assert cosine("Big a town", "big city") == pytest.approx(common**2 / (common**2 + rare**2))
    assert cosine("town town river", "town") == pytest.approx(
        2 * rare / math.hypot(2 * rare, unseen)
    )
    assert cosine("river", "town") == 0.0
    assert cosine("", "town") == 0.0
    assert cosine("big city", "city big") == pytest.approx(1.0)


def test_what_follows_a_prompt_does_not_hang_on_its_batch(model: LanguageModel) -> None:
    """Padding moves no position: with one choice only, sampling is the greedy path."""
    prompts = [model.encode_prompt(text) for text in ("The capital of Togo is", "is", "a big")]
    random = torch.Generator().manual_seed(0)
    said = generate_sampled(model, prompts, 12, random, top_k=1)
    for prompt, added in zip(prompts, said, strict=True):
        ids = list(prompt)
        while len(ids) < 12:
            with torch.no_grad():
                logits = model.network(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
        assert ids == [*prompt, *added]


def test_tokens_are_drawn_by_probability_among_the_likeliest(neox: LanguageModel) -> None:
    prompt = neox.encode_prompt("The capital of Togo is")
    with torch.no_grad():
        logits = neox.network(input_ids=torch.tensor([prompt])).logits[0, -1]
    highest, tokens = logits.topk(5)
    random = torch.Generator().manual_seed(1)
    draws = 4000
    said = generate_sampled(neox, [prompt] * draws, len(prompt) + 1, random)
    counts = Counter(row[0] for row in said)
    assert set(counts) <= set(tokens.tolist())
    for token, share in zip(tokens.tolist(), highest.softmax(0).tolist(), strict=True):
        error = math.sqrt(share * (1 - share) / draws)
        assert abs(counts[token] / draws - share) < 5 * error


def test_sampling_is_repeatable_and_touches_no_other_randomness(neox: LanguageModel) -> None:
    prompts = (
        GenerationPrompt(prompt="Togo is", record="1", references=("a big town",)),
        GenerationPrompt(prompt="Chile is a", record="1", references=("a big town",)),
    )
    meter = FreeTextMeter(neox, prompts, length=12)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    texts, figures = meter.texts(), meter.measure()
    torch.rand(3)
    assert meter.texts() == texts
    assert meter.measure() == figures
    assert FreeTextMeter(neox, prompts, length=12, seed=1).texts() != texts
    assert all(text.startswith(row.prompt) for text, row in zip(texts, prompts, strict=True))
    torch.manual_seed(5)
    meter.texts()
    assert torch.equal(torch.get_rng_state(), state)


def test_figures_are_averaged_over_records(neox: LanguageModel) -> None:
    one = GenerationPrompt(prompt="Togo is", record="1", references=("Togo is big", "a town"))
    two = GenerationPrompt(prompt="Chile is a", record="2", references=("Chile is a town",))
    bare = GenerationPrompt(prompt="a big town", record="3")
    meter = FreeTextMeter(neox, (one, one, two, bare), length=10)
    texts = meter.texts()
    fluency, consistency = meter.measure()
    by_row = [ngram_entropy(text) for text in texts]
    mean = ((by_row[0] + by_row[1]) / 2 + by_row[2] + by_row[3]) / 3
    assert fluency == pytest.approx(100 * mean)
    tfidf = Tfidf(words(text) for text in ("Togo is big", "a town", "Chile is a town"))
    similar = [
        tfidf.cosine(words(f"{texts[0]} {texts[1]}"), words("Togo is big a town")),
        tfidf.cosine(words(texts[2]), words("Chile is a town")),
    ]
    assert consistency == pytest.approx(100 * sum(similar) / 2)


def test_no_references_no_consistency(neox: LanguageModel) -> None:
    meter = FreeTextMeter(neox, (GenerationPrompt(prompt="Togo is", record="1"),), length=8)
    fluency, consistency = meter.measure()
    assert fluency >= 0
    assert consistency is None


def test_a_prompt_that_leaves_no_room_is_refused(neox: LanguageModel) -> None:
    with pytest.raises(TaskError, match="shorter than the 4 tokens"):
        FreeTextMeter(
            neox, (GenerationPrompt(prompt="The capital city of Chile", record="1"),), length=4
        )
