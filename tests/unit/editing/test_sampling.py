"""Prefixes: the model's own words, by the seed alone, kept under all that they depend on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuner.editing.model import LanguageModel, load_model
from tuner.editing.sampling import prepend, sample_prefixes
from tuner.errors import ConfigError
from tuner.files.cache import Cache
from tuner.testing.tiny_models import make_tiny_model

STARTS = ("The", "", "The capital of Togo", "", "Chile is")


def _sample(
    model: LanguageModel,
    starts: tuple[str, ...] = STARTS,
    *,
    new_tokens: Any = 6,
    top_k: int = 5,
    seed: int = 0,
    cache: Cache | None = None,
) -> tuple[str, ...]:
    return sample_prefixes(
        model, starts, new_tokens=new_tokens, top_k=top_k, seed=seed, cache=cache
    )


def test_the_seed_decides_and_nothing_else(model: LanguageModel) -> None:
    state = torch.random.get_rng_state()
    first = _sample(model)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(5)
    assert _sample(model) == first
    assert _sample(model, seed=1) != first
    assert len(first) == len(STARTS)
    assert first[0].startswith("The")
    assert first[2].startswith("The capital of Togo")
    assert first[1] != first[3], "equal starts are continued apart"
    assert all(prefix == prefix.strip() for prefix in first)
    assert model.tokenizer.eos_token not in "".join(first)


def test_one_likeliest_token_is_greedy_text() -> None:
    model = load_model("builtin:neox")
    starts = ("The", "The capital of")
    ids = [torch.tensor([model.encode(start)]) for start in starts]
    for row in range(2):
        for _ in range(4):
            logits = model.network(input_ids=ids[row]).logits[0, -1]
            logits[model.end_id] = -torch.inf
            ids[row] = torch.cat([ids[row], logits.argmax().reshape(1, 1)], dim=1)
    expected = tuple(model.tokenizer.decode(row[0]).strip() for row in ids)
    assert _sample(model, starts, new_tokens=4, top_k=1, seed=7) == expected


def test_tokens_follow_the_models_probabilities() -> None:
    model, drawn = load_model("builtin:neox"), 4000
    rows = _sample(model, ("The",) * drawn, new_tokens=1, top_k=3)
    logits = model.network(input_ids=torch.tensor([model.encode("The")])).logits[0, -1]
    logits[model.end_id] = -torch.inf
    values, indices = logits.topk(3)
    for share, token in zip(values.softmax(-1).tolist(), indices.tolist(), strict=True):
        text = model.tokenizer.decode([*model.encode("The"), token]).strip()
        assert rows.count(text) / drawn == pytest.approx(share, abs=0.03)


def test_lengths_may_differ_and_a_shorter_prefix_is_the_beginning_of_a_longer() -> None:
    model = load_model("builtin:neox")
    together = _sample(model, ("", ""), new_tokens=(3, 9))
    longer = _sample(model, ("", ""), new_tokens=9)
    assert longer[0].startswith(together[0])
    assert together[1] == longer[1]
    assert len(together[0]) < len(longer[0])


def test_a_cache_changes_no_word_and_is_keyed_by_everything(
    neox: LanguageModel, tokenizer: Any, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    plain = _sample(neox)
    assert _sample(neox, cache=cache) == plain  # fills
    assert _sample(neox, cache=cache) == plain  # hits
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"top_k": 4},
        {"new_tokens": 5},
        {"starts": (*STARTS[:4], "Chile")},
    ]
    for changed in others:
        assert _sample(neox, **changed, cache=cache) == _sample(neox, **changed)
    gpt2 = make_tiny_model("gpt2", tokenizer)
    assert _sample(gpt2, cache=cache) == _sample(gpt2)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_no_starts_no_prefixes(neox: LanguageModel) -> None:
    assert _sample(neox, ()) == ()


@pytest.mark.parametrize(
    "bad", [{"new_tokens": (3,)}, {"new_tokens": 0}, {"top_k": 0}, {"new_tokens": 500}]
)
def test_impossible_lengths_are_refused(neox: LanguageModel, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        _sample(neox, **bad)


def test_a_prompt_follows_as_a_sentence(neox: LanguageModel) -> None:
    assert prepend(neox, "So it was", "The capital is") == "So it was. The capital is"
    assert prepend(neox, "", "The capital is") == "The capital is"
    assert prepend(neox, "a {brace}", "{x} is") == "a {brace}. {x} is"
