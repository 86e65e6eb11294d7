"""The place of the subject: by characters, whatever the tokenizer."""

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tuner.editing.model import LanguageModel, load_model
from tuner.editing.subject import locate_subject, right_padded
from tuner.errors import EditError


def _spelt(model: LanguageModel, prompt: str, subject: str | None, prefix: str = "") -> str:
    found = locate_subject(model, prompt, subject, prefix=prefix)
    return str(model.tokenizer.decode(list(found.ids[: found.position + 1])))


def test_the_subject_ends_where_its_characters_end(neox: LanguageModel) -> None:
    assert _spelt(neox, "The capital of Mauritius is", "Mauritius") == "The capital of Mauritius"
    assert _spelt(neox, "Togo is a big town", "Togo") == "Togo"
    # Split within a word, the token that holds the last character counts.
    assert _spelt(neox, "The capital of Mauritius is", "Maurit").startswith("The capital of Maurit")


def test_without_a_subject_the_whole_prompt_is_it(neox: LanguageModel) -> None:
    found = locate_subject(neox, "The capital of Togo is", None)
    assert found.position == len(found.ids) - 1
    empty = locate_subject(neox, "", None)
    assert (empty.ids, empty.position) == ((neox.end_id,), 0)


def test_a_prefix_moves_the_place_and_may_hold_the_subject(neox: LanguageModel) -> None:
    said = _spelt(neox, "The capital of Togo is", "Togo", prefix="Togo is big")
    assert said == "Togo is big. The capital of Togo"


def test_a_repeated_subject_counts_where_it_stands_last(neox: LanguageModel) -> None:
    assert _spelt(neox, "Togo is Togo and a city", "Togo") == "Togo is Togo"


def test_a_missing_subject_is_an_edit_error(neox: LanguageModel) -> None:
    with pytest.raises(EditError, match="'Chile' does not stand in the prompt"):
        locate_subject(neox, "The capital of Togo is", "Chile")


def test_a_special_token_in_front_does_not_shift_the_place(
    neox: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = locate_subject(neox, "The capital of Togo is", "Togo")
    end = (neox.tokenizer.eos_token, neox.end_id)
    neox.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end[0]} $A", special_tokens=[end]
    )
    try:
        framed = LanguageModel(neox.network, neox.tokenizer, id="framed")
        found = locate_subject(framed, "The capital of Togo is", "Togo")
    finally:
        neox.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert found.ids == (neox.end_id, *plain.ids)
    assert found.position == plain.position + 1


def test_characters_of_several_tokens() -> None:
    model = load_model("builtin:neox")
    prompt = "The city of São Tomé is"
    found = locate_subject(model, prompt, "São Tomé")
    assert model.tokenizer.decode(list(found.ids[: found.position + 1])) == "The city of São Tomé"


def test_padding_stands_on_the_right_whatever_the_tokenizer_says(neox: LanguageModel) -> None:
    neox.tokenizer.padding_side = "left"
    short = locate_subject(neox, "Togo is", "Togo")
    long = locate_subject(neox, "The capital of Togo is", "Togo")
    ids, mask, positions = right_padded([short, long], neox.end_id, neox.device)
    neox.tokenizer.padding_side = "right"
    assert ids[0, : len(short.ids)].tolist() == list(short.ids)
    assert mask.sum(dim=1).tolist() == [len(short.ids), len(long.ids)]
    assert positions.tolist() == [short.position, long.position]


def test_a_longer_word_that_holds_the_subject_is_another(neox: LanguageModel) -> None:
    said = _spelt(neox, "The capital of Togo is as the Togolese say", "Togo")
    assert said == "The capital of Togo"
    assert _spelt(neox, "The sister near the sisters", "sister") == "The sister"
