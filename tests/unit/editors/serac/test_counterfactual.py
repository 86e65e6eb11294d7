"""A counterfactual model learns to say what the edit before a prompt asks for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tuner.editing.likelihood import continuation_losses
from tuner.editing.model import LanguageModel, load_model
from tuner.editing.task import Example, Split
from tuner.editors._retrieval.edit_text import EditText, continuation_after
from tuner.editors._training.amortised import Schedule
from tuner.editors._training.training_edits import TrainingEdit, training_edits
from tuner.editors.serac.counterfactual import (
    Counterfactual,
    CounterfactualSettings,
    _Rows,
    train_counterfactual,
)
from tuner.errors import BaseMismatch, ConfigError
from tuner.files.cache import Cache

SCHEDULE = Schedule(
    learning_rate=1e-2,
    steps=60,
    warmup=0,
    edits_per_step=6,
    check_every=20,
    patience=9,
    gradient_clip=100.0,
    held_out=0.0,
    seed=0,
)
PLAIN = CounterfactualSettings(
    joint=" ", unlikelihood=False, renamed_share=0.0, rows_per_edit=1, prompt_weight=0.0
)


@pytest.fixture
def small_model(tiny: str) -> LanguageModel:
    return load_model(tiny)


def _with_contrasts(split: Split) -> Split:
    """The split where each row's contrast is the next edit's target."""
    targets = [row.target for row in split.canonical.rows]
    following = dict(zip(targets, [*targets[1:], targets[0]], strict=True))

    def contrasted(part: str) -> dict[str, object]:
        rows = getattr(split, part)
        some = tuple(r.model_copy(update={"contrast": following[r.target]}) for r in rows.rows)
        return {part: rows.model_copy(update={"rows": some})}

    return split.model_copy(update=contrasted("canonical") | contrasted("ood"))


@torch.no_grad()
def _losses(found: Counterfactual, pairs: list[tuple[TrainingEdit, str, str]]) -> torch.Tensor:
    small = found.small
    rows = [
        continuation_after(
            small.texts,
            EditText.of(edit.edit),
            " ",
            prompt,
            small.encode(said),
            most=small.context_length,
        )
        for edit, prompt, said in pairs
    ]
    return continuation_losses(found.network, rows, small.end_id)


def _in_scope(split: Split) -> list[tuple[TrainingEdit, str, str]]:
    return [(edit, r.prompt, r.target) for edit in training_edits(split) for r in edit.inside]


def test_it_says_the_edit_s_target_where_a_prompt_is_in_scope(
    small_model: LanguageModel, training: Split
) -> None:
    before = _losses(Counterfactual(small_model, {}), _in_scope(training))
    found = train_counterfactual(small_model, training, SCHEDULE, None, PLAIN)
    after = _losses(found, _in_scope(training))
    assert (after < before).all()
    assert (after < 0.7).all()
    small_model.check_unchanged()


def test_by_renamed_targets_it_learns_to_read(small_model: LanguageModel, training: Split) -> None:
    """Told of another edit's target, it says that one and not what it knows of the prompt."""
    edits = training_edits(training)
    swapped = [
        (
            replace(edit, edit=edit.edit.model_copy(update={"target": other.edit.target})),
            edit.in_scope[0].prompt,
            other.edit.target,
        )
        for edit, other in zip(edits, [*edits[2:], *edits[:2]], strict=True)
    ]
    long = replace(SCHEDULE, steps=100)
    by_heart = train_counterfactual(small_model, training, long, None, PLAIN)
    renaming = replace(PLAIN, renamed_share=0.9)
    read = train_counterfactual(small_model, training, long, None, renaming)
    assert _losses(read, swapped).mean() < 0.7 * _losses(by_heart, swapped).mean()


def test_unlikelihood_lowers_the_token_with_which_a_contrast_parts(
    small_model: LanguageModel, training: Split
) -> None:
    split = _with_contrasts(training)
    few = replace(SCHEDULE, steps=15)
    rows = [(edit, row) for edit in training_edits(split) for row in edit.inside]
    parting = []
    for edit, row in rows:
        wanted, said = small_model.encode(row.target), small_model.encode(str(row.contrast))
        place = next(i for i, token in enumerate(said) if wanted[i : i + 1] != [token])
        parting.append((edit, row.prompt, small_model.tokenizer.decode(said[: place + 1])))
    without = train_counterfactual(small_model, split, few, None, PLAIN)
    told = replace(PLAIN, unlikelihood=True)
    with_it = train_counterfactual(small_model, split, few, None, told)
    assert _losses(with_it, parting).mean() > _losses(without, parting).mean() + 0.2


def test_what_follows_a_contrast_s_first_token_is_not_unlearned(
    small_model: LanguageModel, training: Split
) -> None:
    """Each target is also a contrast: making all tokens of those unlikely would be a tie."""
    split = _with_contrasts(training)
    told = replace(PLAIN, unlikelihood=True)
    found = train_counterfactual(small_model, split, SCHEDULE, None, told)
    assert (_losses(found, _in_scope(split)) < 0.7).all()


def test_reading_prompts_that_repeat_an_edit_makes_them_likely(
    small_model: LanguageModel, training: Split
) -> None:
    few = replace(SCHEDULE, steps=15)
    again = [(edit, "", f" {edit.edit.prompt}") for edit in training_edits(training)]
    read = train_counterfactual(small_model, training, few, None, replace(PLAIN, prompt_weight=1.0))
    not_read = train_counterfactual(small_model, training, few, None, PLAIN)
    assert _losses(read, again).mean() < 0.8 * _losses(not_read, again).mean()


def test_same_settings_same_weights_and_one_training(
    small_model: LanguageModel, training: Split, tmp_path: Path
) -> None:
    cache, few = Cache(tmp_path), replace(SCHEDULE, steps=2, held_out=0.3, check_every=1)
    reading = replace(PLAIN, renamed_share=0.5)
    first = train_counterfactual(small_model, training, few, cache, reading)
    torch.manual_seed(99)
    again = train_counterfactual(small_model, training, few, None, reading)
    assert first.weights.keys() == again.weights.keys()
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    train_counterfactual(small_model, training, few, cache, reading)
    assert len(list(tmp_path.glob("counterfactual/*.safetensors"))) == 1
    for other in (
        replace(reading, joint=". "),
        replace(reading, unlikelihood=True),
        replace(reading, renamed_share=0.6),
        replace(reading, rows_per_edit=2),
        replace(reading, prompt_weight=0.5),
        replace(reading, mean_over="examples"),
    ):
        train_counterfactual(small_model, training, few, cache, other)
    train_counterfactual(small_model, training, replace(few, seed=1), cache, reading)
    assert len(list(tmp_path.glob("counterfactual/*.safetensors"))) == 8


def test_answers_count_by_their_tokens_or_alike(small_model: LanguageModel) -> None:
    """The two means written out, of answers of one token and of many."""
    rows, token_means, tokens = [], [], []
    for target in (" Lome", " Port Louis of Mauritius and Chile"):
        edit = Example(prompt="The capital of Togo is", target=target, record="Togo")
        rows.append((TrainingEdit(edit, (), ()), edit))
        before = small_model.encode(f"{edit.prompt}{target} {edit.prompt}")
        ids = torch.tensor([[*before, *small_model.encode(target)]])
        with torch.no_grad():
            said = small_model.network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses = -said.gather(1, ids[0, 1:, None])[len(before) - 1 :, 0]
        token_means.append(losses.mean())
        tokens.append(losses)
    assert len({len(losses) for losses in tokens}) == 2
    expected = {"tokens": torch.cat(tokens).mean(), "examples": torch.stack(token_means).mean()}
    assert abs(expected["tokens"] - expected["examples"]) > 0.01
    for mean_over, mean in expected.items():
        reading = replace(PLAIN, mean_over=mean_over)
        with torch.no_grad():
            found = _Rows(small_model, reading).loss(small_model.network, rows)
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)
    assert PLAIN.mean_over == "tokens"


def test_stored_weights_belong_to_their_model(small_model: LanguageModel) -> None:
    with pytest.raises(BaseMismatch, match="has no place"):
        _ = Counterfactual(small_model, {"no.weight": torch.zeros(2)}).network


def test_a_long_prompt_loses_its_beginning_and_an_edit_nothing(neox: LanguageModel) -> None:
    edit = EditText(prompt="The capital of Togo is", target=" Lome")
    lead = neox.encode(edit.text)
    said = neox.encode(" big")
    prompt = "a big town of Chile is " * 30
    row = continuation_after(neox.texts, edit, " ", prompt, said, most=40)
    assert len(row.ids) == 40
    assert list(row.ids[: len(lead)]) == lead
    assert list(row.ids[row.start :]) == said
    asked = neox.encode(f" {prompt}")
    assert list(row.ids[len(lead) : row.start]) == asked[-(row.start - len(lead)) :]
    with pytest.raises(ConfigError, match="leave no room for a prompt in a context of"):
        continuation_after(neox.texts, edit, " ", prompt, said, most=len(lead) + len(said))


def test_an_edit_that_exceeds_the_context_is_refused(
    small_model: LanguageModel, training: Split
) -> None:
    long = Example(prompt="The capital " * 200, target=" Lome", record="Peru")
    rows = (long, *training.canonical.rows[1:])
    canonical = training.canonical.model_copy(update={"rows": rows})
    with pytest.raises(ConfigError, match="leave no room for a prompt"):
        train_counterfactual(
            small_model,
            training.model_copy(update={"canonical": canonical}),
            SCHEDULE,
            None,
            PLAIN,
        )


def test_of_several_documents_a_prompt_is_the_last(neox: LanguageModel) -> None:
    first, last = neox.encode("a big town"), neox.encode("The capital of Togo is")
    end = neox.end_id
    for ids in ([*first, end, *last], [end, *last], last):
        assert neox.texts.decode_prompt(ids) == "The capital of Togo is"
    assert neox.texts.decode_prompt([*first, end]) == "a big town"
