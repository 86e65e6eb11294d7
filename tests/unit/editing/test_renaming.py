"""Renamed edits stay right, and names are words of the tokenizer."""

import torch
from transformers import PreTrainedTokenizerFast

from tuner.editing.renaming import Names, renamed
from tuner.editing.task import Example
from tuner.editing.training_edits import TrainingEdit


def _edit(target: str, *rows: Example, contrast: str | None = None) -> TrainingEdit:
    canonical = Example(
        prompt="The capital of Togo is", target=target, contrast=contrast, record="a"
    )
    return TrainingEdit(canonical, rows, (Example(prompt="Chile is", target=" big"),))


def test_the_target_gets_another_name_in_the_edit_and_its_rows() -> None:
    said = Example(prompt="In Togo, the capital is", target=" Lome.")
    asked = Example(prompt="Which country is Lome in? Lome is in", target=" Togo")
    found = renamed(_edit(" Lome.", said, asked), "Big Town", "Small Town")
    assert (found.edit.prompt, found.edit.target) == ("The capital of Togo is", " Big Town.")
    assert [row.target for row in found.in_scope] == [" Big Town.", " Togo"]
    assert found.in_scope[1].prompt == "Which country is Big Town in? Big Town is in"
    assert found.record == "a"
    assert found.out_of_scope[0].prompt == "Chile is"


def test_rows_that_another_target_would_make_wrong_are_left_out() -> None:
    said = Example(prompt="In Togo, the capital is", target=" Lome")
    implied = Example(prompt="The government of Togo is on the", target=" coast")
    judged = Example(prompt="The capital of Togo is Chile. It is", target=" not", contrast=" so")
    found = renamed(_edit(" Lome", said, implied, judged), "Town", "Village")
    assert [row.target for row in found.in_scope] == [" Town", " not"]


def test_a_label_that_no_row_mentions_is_not_renamed() -> None:
    opinion = Example(prompt="Togo is", target=" big.", contrast=" town.")
    edit = _edit(" positive", opinion, contrast=" negative")
    assert renamed(edit, "Lome", "Lima") is edit


def test_the_contrast_gets_another_name_too_so_that_neither_tells_what_is_false() -> None:
    right = Example(prompt="The capital is Lome. It is", target=" true", contrast=" false")
    wrong = Example(prompt="The capital is Lome Port. It is", target=" false", contrast=" true")
    found = renamed(_edit(" Lome", right, wrong, contrast=" Lome Port"), "Lome Port", "Lome")
    assert (found.edit.target, found.edit.contrast) == (" Lome Port", " Lome")
    assert [row.prompt for row in found.in_scope] == [
        "The capital is Lome Port. It is",
        "The capital is Lome. It is",
    ]
    assert [row.target for row in found.in_scope] == [" true", " false"]


def test_a_name_within_another_word_is_left_alone() -> None:
    said = Example(prompt="The team of Togo makes", target=" tea")
    found = renamed(_edit(" tea", said), "Lome", "Lima")
    assert (found.in_scope[0].prompt, found.in_scope[0].target) == (said.prompt, " Lome")


def test_names_are_drawn_from_the_tokenizer_by_the_generator_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first = _draw(tokenizer, 0)
    torch.manual_seed(99)
    assert _draw(tokenizer, 0) == first != _draw(tokenizer, 1)
    assert len(set(first)) > 40
    assert all(1 <= len(name.split(" ")) <= 2 for name in first)
    assert all(word.isalpha() for name in first for word in name.split(" "))


def test_every_second_name_is_another_edits(tokenizer: PreTrainedTokenizerFast) -> None:
    drawn = _draw(tokenizer, 0, _edit(" Lome."), _edit(" Lima"), _edit(" ."))
    assert 15 < sum(name in ("Lome", "Lima") for name in drawn) < 35
    assert all(drawn)


def _draw(tokenizer: PreTrainedTokenizerFast, seed: int, *others: TrainingEdit) -> list[str]:
    random = torch.Generator().manual_seed(seed)
    names = Names(tokenizer, others)
    return [names.draw(random) for _ in range(50)]
