"""Renamed edits stay right, and names are words of the tokenizer."""

import torch
from transformers import PreTrainedTokenizerFast

from tuner.editing.task import Example
from tuner.editors._training.training_edits import TrainingEdit
from tuner.editors.serac.renaming import Names, renamed


def _edit(target: str, *rows: Example, contrast: str | None = None) -> TrainingEdit:
    canonical = Example(
        prompt="The capital of Togo is", target=target, contrast=contrast, record="a"
    )
    return TrainingEdit(canonical, rows, (Example(prompt="Chile is", target=" big"),))


def _renamed(
    tokenizer: PreTrainedTokenizerFast, edit: TrainingEdit, *others: TrainingEdit
) -> TrainingEdit:
    return renamed(edit, Names(tokenizer, others), torch.Generator().manual_seed(0))


def test_the_target_gets_another_name_in_the_edit_and_its_rows(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    said = Example(prompt="In Togo, the capital is", target=" Lome.")
    asked = Example(prompt="Which country is Lome in? Lome is in", target=" Togo")
    found = _renamed(tokenizer, _edit(" Lome.", said, asked))
    name = found.edit.target.removesuffix(".").removeprefix(" ")
    assert name != "Lome"
    assert (found.edit.prompt, found.edit.target) == ("The capital of Togo is", f" {name}.")
    assert [row.target for row in found.in_scope] == [f" {name}.", " Togo"]
    assert found.in_scope[1].prompt == f"Which country is {name} in? {name} is in"
    assert found.record == "a"
    assert found.out_of_scope[0].prompt == "Chile is"


def test_rows_that_another_target_would_make_wrong_are_left_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    said = Example(prompt="In Togo, the capital is", target=" Lome")
    implied = Example(prompt="The government of Togo is on the", target=" coast")
    judged = Example(prompt="The capital of Togo is Chile. It is", target=" not", contrast=" so")
    found = _renamed(tokenizer, _edit(" Lome", said, implied, judged))
    assert [row.target for row in found.in_scope] == [found.edit.target, " not"]


def test_rows_about_another_edits_target_stay_while_the_edit_does_not_get_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    said = Example(prompt="In Togo, the capital is", target=" Lome")
    wrong = Example(prompt="The capital of Togo is Lima. It is", target=" false")
    edit, other = _edit(" Lome", said, wrong), _edit(" Lima")
    names = Names(tokenizer, [other])
    given = [renamed(edit, names, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {found.edit.target == " Lima" for found in given} == {True, False}
    for found in given:
        assert (wrong in found.in_scope) == (found.edit.target != " Lima")
    # Where no other edit says so, the row might be about anything.
    assert len(_renamed(tokenizer, edit).in_scope) == 1


def test_a_label_that_no_row_mentions_is_not_renamed(tokenizer: PreTrainedTokenizerFast) -> None:
    opinion = Example(prompt="Togo is", target=" big.", contrast=" town.")
    edit = _edit(" positive", opinion, contrast=" negative")
    assert _renamed(tokenizer, edit) is edit


def test_the_contrast_gets_another_name_too_so_that_neither_tells_what_is_false(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    right = Example(prompt="The capital is Lome. It is", target=" true", contrast=" false")
    wrong = Example(prompt="The capital is Lome Port. It is", target=" false", contrast=" true")
    found = _renamed(tokenizer, _edit(" Lome", right, wrong, contrast=" Lome Port"))
    assert found.edit.contrast is not None
    names = [found.edit.target, found.edit.contrast]
    assert len({*names, " Lome", " Lome Port"}) == 4
    assert [row.prompt for row in found.in_scope] == [
        f"The capital is{name}. It is" for name in names
    ]
    assert [row.target for row in found.in_scope] == [" true", " false"]


def test_a_name_within_another_word_is_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    said = Example(prompt="The team of Togo makes", target=" tea")
    found = _renamed(tokenizer, _edit(" tea", said))
    assert (found.in_scope[0].prompt, found.in_scope[0].target) == (said.prompt, found.edit.target)


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
