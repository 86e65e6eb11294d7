"""What fine-tuning learns from: each ingredient adds its rows and changes no other."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.delta import WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_example
from tuner.editing.model import LanguageModel
from tuner.editing.sampling import sample_prefixes
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.editing.tfidf import nearest_texts
from tuner.editors._training.loop import row_losses
from tuner.editors._training.rows import TrainingRow, generator_for, random_facts, sentence_after
from tuner.editors.full_finetuning import FullFinetuning
from tuner.errors import ConfigError, EditError
from tuner.files.cache import Cache

FACTS = ExampleSet(
    loss=LossKind.LIKELIHOOD,
    rows=tuple(
        Example(prompt=prompt, target=target)
        for prompt, target in (
            ("Santiago is a town of", " Chile"),
            ("The capital of Togo is", " big"),  # the prompt of an edit: it must not come back
            ("The big city of Chile is", " Santiago"),
            ("A town is", " big."),
        )
    ),
)


def _rows(
    model: LanguageModel, examples: ExampleSet, aux: Auxiliary, epochs: int = 1, **fields: Any
) -> list[list[TrainingRow]]:
    editor = FullFinetuning.model_validate({"learning_rate": 1e-3, **fields})
    return list(islice(editor.rows_by_epoch(model, examples, aux, seed=2), epochs))


def _texts(model: LanguageModel, rows: list[TrainingRow]) -> list[tuple[str, str]]:
    """The text that is read and the text that is learned, of each row."""
    targets = [row.encoded.target for row in rows]
    return [
        (
            model.tokenizer.decode(target.ids[: target.start]),
            model.tokenizer.decode(target.ids[target.start :]),
        )
        for target in targets
    ]


@pytest.fixture
def aux(corpus: Corpus) -> Auxiliary:
    return Auxiliary(corpus, facts=FACTS)


def _plain(examples: ExampleSet) -> list[tuple[str, str]]:
    return [(row.prompt, row.target) for row in examples.rows]


def test_without_ingredients_the_rows_are_the_examples(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    first, second = _rows(neox, examples, Auxiliary(corpus), epochs=2)
    assert [row.encoded for row in first] == [encode_example(neox, e) for e in examples.rows]
    assert first == second


def test_a_prompt_that_holds_the_targets_tokens_is_not_learned(neox: LanguageModel) -> None:
    example = Example(prompt="The town Lome Lome is", target=" Lome")
    encoded = encode_example(neox, example)
    ids, start = encoded.target.ids, encoded.target.start
    assert set(ids[:start]) & set(ids[start:])
    name = f"{neox.architecture.mlp_modules(0)[-1]}.weight"

    def gradient(by_hand: bool) -> torch.Tensor:
        twin = neox.twin(own=[name])
        weight = twin.get_parameter(name).requires_grad_(True)
        if by_hand:
            logits = twin(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            learned = [logits[place - 1, ids[place]] for place in range(start, len(ids))]
            loss = -torch.stack(learned).mean()
        else:
            rows = [TrainingRow(example, encoded, LossKind.LIKELIHOOD)]
            loss = row_losses(twin, rows, neox.end_id).sum()
        (found,) = torch.autograd.grad(loss, weight)
        return found

    torch.testing.assert_close(gradient(by_hand=False), gradient(by_hand=True))


def test_prefixes_add_copies_with_the_same_target(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    (rows,) = _rows(neox, examples, aux, prefixes=7)
    prefixes = sample_prefixes(
        neox, [""] * 7, new_tokens=[4] * 5 + [9] * 2, top_k=5, seed=2, cache=None
    )
    assert len(rows) == 3 * (1 + 7)
    assert _texts(neox, rows[:3]) == _plain(examples)
    wanted = [(f"{p}. {e.prompt}", e.target) for e in examples.rows for p in prefixes]
    assert [(row.example.prompt, row.example.target) for row in rows[3:]] == wanted
    assert {row.loss for row in rows} == {examples.loss}
    for row in rows[3:]:
        start = row.encoded.target.start
        assert row.encoded.target.ids[start:] == tuple(neox.encode(row.example.target))


def test_facts_are_learned_with_their_own_targets_beside_untouched_examples(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    (rows,) = _rows(neox, examples, aux, facts=2)
    assert _texts(neox, rows[:3]) == _plain(examples)
    kept = [(row.example.prompt, row.example.target) for row in rows[3:]]
    assert len(kept) == 3 * 2
    known = {(fact.prompt, fact.target) for fact in FACTS.rows}
    # Three facts are left without the edit's own prompt, and each comes twice.
    assert set(kept) == known - {("The capital of Togo is", " big")}
    assert all(kept.count(fact) == 2 for fact in set(kept))


def test_facts_keep_their_loss_whatever_the_edits_is(neox: LanguageModel, aux: Auxiliary) -> None:
    edits = ExampleSet(
        loss=LossKind.PREFER,
        rows=(Example(prompt="A town is", target=" big", contrast=" Port Louis"),),
    )
    (rows,) = _rows(neox, edits, aux, facts=2, end_of_text=True)
    edit, *facts = rows
    losses = row_losses(neox.network, [*facts, edit], neox.end_id)
    apart = [row_losses(neox.network, [row], neox.end_id) for row in (*facts, edit)]
    torch.testing.assert_close(losses, torch.cat(apart), rtol=1e-5, atol=1e-5)
    assert edit.loss is LossKind.PREFER
    assert edit.encoded == encode_example(neox, edits.rows[0])
    assert {fact.loss for fact in facts} == {LossKind.LIKELIHOOD}
    assert all(fact.encoded.target.ids[-1] == neox.end_id for fact in facts)


def test_nearest_facts_are_those_that_share_rare_words(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    (rows,) = _rows(neox, examples, aux, facts=1, nearest_facts=True)
    chile = rows[3:][2]
    assert examples.rows[2].subject == "Chile"
    assert chile.example.prompt == "The big city of Chile is"
    pool = ["a a a", "b b", "Togo Chile", "b"]
    assert nearest_texts(neox, ["b", "Chile"], pool, 2) == [[1, 3], [2, 0]]
    assert nearest_texts(neox, ["b"], pool, 9) == [[1, 3, 0, 2]]


def test_tf_idf_is_the_definition(neox: LanguageModel) -> None:
    pool = ["The capital of Togo", "The town of Chile", "a big big town", "Port Louis is a city"]
    texts = ["The big town of Togo is a town"]
    ids = {text: neox.encode(f" {text}") for text in (*pool, *texts)}
    tokens = sorted({token for text in pool for token in ids[text]})
    df = torch.tensor([sum(token in ids[text] for text in pool) for token in tokens])
    idf = torch.log((1 + len(pool)) / (1 + df.double())) + 1

    def vector(text: str) -> torch.Tensor:
        counts = torch.tensor([ids[text].count(token) for token in tokens])
        return torch.nn.functional.normalize(counts * idf, dim=0)

    scores = torch.stack([vector(text) for text in pool]) @ vector(texts[0])
    assert nearest_texts(neox, texts, pool, 4) == [scores.argsort(descending=True).tolist()]


def test_random_facts_come_round_only_when_all_have_come() -> None:
    drawn = random_facts(FACTS.rows, 10, seed=0)
    assert set(drawn[:4]) == set(drawn[4:8]) == set(FACTS.rows)
    assert random_facts(FACTS.rows, 10, seed=0) == drawn
    assert random_facts(FACTS.rows, 10, seed=1) != drawn


def test_a_true_sentence_follows_the_target_afresh_each_epoch(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    epochs = _rows(neox, examples, aux, epochs=4, fact_after_target=True, facts=1, prefixes=1)
    sentences = {
        ". Santiago is a town of Chile.",
        ". The big city of Chile is Santiago.",
        ". A town is big.",
    }
    drawn: list[tuple[str, ...]] = []
    for rows in epochs:
        followed, kept = rows[:6], rows[6:]
        learned = [row.encoded.target for row in followed]
        for row, text in zip(followed, learned, strict=True):
            plain = encode_example(neox, row.example).target
            assert text.start == plain.start
            assert text.ids[: len(plain.ids)] == plain.ids
        behind = tuple(
            neox.tokenizer.decode(text.ids[len(encode_example(neox, row.example).target.ids) :])
            for row, text in zip(followed, learned, strict=True)
        )
        assert set(behind) <= sentences
        drawn.append(behind)
        assert kept == epochs[0][6:]
        assert all(row.encoded == encode_example(neox, row.example) for row in kept)
    assert len(set(drawn)) > 1
    assert _rows(neox, examples, aux, epochs=4, fact_after_target=True, facts=1, prefixes=1) == (
        epochs
    )


def test_sentences_are_joined_by_one_full_stop() -> None:
    fact = Example(prompt="A town is", target=" big")
    edit = Example(prompt="Togo", target=" is a town")
    assert sentence_after(edit, fact) == ". A town is big."
    whole = Example(prompt="Togo", target=" is a town.")
    assert sentence_after(whole, FACTS.rows[3]) == " A town is big."


def test_the_end_of_text_is_learned_even_where_it_pads(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    (rows,) = _rows(neox, examples, aux, end_of_text=True, facts=1)
    for row in rows:
        plain = encode_example(neox, row.example).target
        assert row.encoded.target.ids == (*plain.ids, neox.end_id)
        assert row.encoded.target.target_length == plain.target_length + 1
    found = row_losses(neox.network, rows[:1], neox.end_id)
    target = rows[0].encoded.target
    logits = neox.network(input_ids=torch.tensor([target.ids])).logits[0].log_softmax(-1)
    by_hand = -sum(
        logits[place - 1, target.ids[place]] for place in range(target.start, len(target.ids))
    )
    torch.testing.assert_close(found[0], by_hand / target.target_length, rtol=1e-4, atol=1e-4)
    followed = _rows(neox, examples, aux, end_of_text=True, fact_after_target=True)[0]
    assert all(row.encoded.target.ids.count(neox.end_id) == 1 for row in followed)


def test_naive_fine_tuning_learns_the_prompt_too(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    (rows,) = _rows(neox, examples, aux, whole_text=True)
    assert [row.encoded.target.start for row in rows] == [1, 1, 1]
    assert _rows(neox, examples, aux)[0][0].encoded.target.ids == rows[0].encoded.target.ids


@pytest.mark.parametrize("field", [{"facts": 1}, {"fact_after_target": True}])
def test_facts_that_are_not_there_are_asked_for(
    field: dict[str, Any], neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    with pytest.raises(ConfigError, match=rf"`{next(iter(field))}` needs true facts.*none are"):
        _rows(neox, examples, Auxiliary(corpus), **field)
    only_edits = FACTS.model_copy(update={"rows": examples.rows})
    with pytest.raises(ConfigError, match="each of the 3 given has the prompt"):
        _rows(neox, examples, Auxiliary(corpus, facts=only_edits), **field)
    earlier = Auxiliary(corpus, facts=FACTS, earlier={row.prompt for row in FACTS.rows})
    with pytest.raises(ConfigError, match="each of the 4 given"):
        _rows(neox, examples, earlier, **field)


def test_what_does_not_fit_is_refused(
    neox: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    unwanted = examples.model_copy(update={"loss": LossKind.SUPPRESS})
    with pytest.raises(ConfigError, match="for the loss likelihood"):
        _rows(neox, unwanted, aux, fact_after_target=True)
    size = len(neox.encode("town town")) - len(neox.encode("town"))
    fits = " town" * ((neox.context_length - 8) // size)
    long = ExampleSet(loss=LossKind.LIKELIHOOD, rows=(Example(prompt=fits, target=" big"),))
    assert len(_rows(neox, long, aux, end_of_text=True)[0]) == 1
    for field in ({"fact_after_target": True}, {"prefixes": 6}):
        # These settings do not fit; the task does, so a study goes on with others.
        with pytest.raises(EditError, match="exceed"):
            _rows(neox, long, aux, **field)


def test_each_purpose_has_random_numbers_of_its_own() -> None:
    one, other = generator_for("facts", 0), generator_for("sentences", 0)
    again = generator_for("facts", 0)
    drawn = torch.rand(5, generator=one)
    assert torch.equal(drawn, torch.rand(5, generator=again))
    assert not torch.equal(drawn, torch.rand(5, generator=other))


def test_a_cache_changes_no_bit_of_the_delta(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    editor = FullFinetuning(
        learning_rate=1e-3, epochs=2, prefixes=3, facts=2, fact_after_target=True, end_of_text=True
    )

    def tensors(cache: Cache | None) -> dict[str, torch.Tensor]:
        *_, step = editor.edit(neox, examples, Auxiliary(corpus, FACTS, cache=cache), seed=1)
        assert isinstance(step.delta, WeightDelta)
        return step.delta.tensors()

    plain = tensors(None)
    for _ in ("fills the cache", "reads the cache"):
        cached = tensors(Cache(tmp_path))
        assert all(torch.equal(plain[name], cached[name]) for name in plain)
    assert list(tmp_path.rglob("*.safetensors"))


def test_in_a_chain_of_batches_the_unedited_model_writes_the_prefixes(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    *_, step = FullFinetuning(learning_rate=1e-2, epochs=3, kl_weight=0).edit(
        neox, examples, Auxiliary(corpus), seed=0
    )
    assert isinstance(step.delta, WeightDelta)
    later = neox.after(step.delta)
    (alone,) = _rows(neox, examples, Auxiliary(corpus), prefixes=3)
    (chained,) = _rows(later, examples, Auxiliary(corpus, origin=neox), prefixes=3)
    (own,) = _rows(later, examples, Auxiliary(corpus), prefixes=3)
    assert chained == alone
    assert own != alone
