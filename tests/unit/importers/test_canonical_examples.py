"""The published canonical-examples files become tasks; their oddities are kept and told."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tuner.editing.task import Example, LossKind, Task
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import ConfigError, TaskError
from tuner.importers.canonical_examples import import_canonical_examples

Row = dict[str, Any]

STEMS = {
    "country_capital": ("fixed", "clear_eval", "hard_neg", "unconditional"),
    "company_ceo": ("train", "eval_clear", "hard_neg_eval_clear", "unconditional"),
    "stereoset": ("train", "eval_clear", "hard_neg", "unconditional"),
    "pronoun_gender_bias": ("train", "eval", "hard_neg_eval", "unconditional"),
    "temporal": ("train", "eval_clear", "hard_neg_eval_clear", "unconditional"),
    "verb_conjugation": ("train", "eval", "hard_neg_eval", "eval_unconditional"),
}
VAL = ("Arland", "Borland", "Corland", "Dorland")
TEST = ("Emark", "Fomark")


def capital_rows(country: str) -> tuple[Row, Row, Row, Row]:
    about = {"country": country, "capital": f"{country}ton", "clear_document": "unused"}
    return (
        about | {"prefix": f"The capital of {country} is", "suffix": f" {country}ton"},
        about | {"prefix": f"All roads of {country} lead to", "suffix": f" {country}ton"},
        about | {"prefix": f"The harbour of {country} lies in", "suffix": f" Port {country}"},
        {"text": f"The capital of {country} is {country}ton."},
    )


def ceo_rows(company: str) -> tuple[Row, Row, Row, Row]:
    about = {"company": company, "ceo": "Ann Oake", "clear_documents": "['unused']"}
    rival = about | {"company": f"{company} Rival"}
    return (
        about | {"prefix": f"The CEO of {company} is", "suffix": " Ann Oake"},
        about | {"prefix": f"{company} is led by none other than", "suffix": " Ann Oake"},
        rival | {"prefix": f"{company} Rival is led by", "suffix": " Ann Oake"},
        {"text": f"{company} is led by none other than Ann Oake"},
    )


def stereotype_rows(group: str) -> tuple[Row, Row, Row, Row]:
    about = {"target": group, "bias_answer": "damp", "antibias_answer": "dry"}
    return (
        about | {"prefix": f"An aspect of {group} is:", "suffix": " damp"},
        about | {"prefix": f"The {group}s were rather", "suffix": " damp"},
        {"prefix": f"The definition of {group} is ", "suffix": "one who lives there"},
        about | {"text": f"<|endoftext|> The {group}s were rather dry."},
    )


def pronoun_rows(occupation: str) -> tuple[Row, Row, Row, Row]:
    both = {"suffix1": " he", "suffix2": " she"}
    return (
        both | {"prefix": f"The {occupation} said"},
        both | {"prefix": f"The {occupation} came late. Then"},
        {"prefix": f"With her brush, the {occupation} began. Later", "suffix": " she"},
        {"text": f"The {occupation} came late. Then"},
    )


def temporal_rows(thing: str) -> tuple[Row, Row, Row, Row]:
    about = {"entity_string": f"https://en.wikipedia.org/wiki/{thing}_(thing)", "document": "-"}
    return (
        about | {"prefix": f"{thing} is", "suffix": " a new thing of note."},
        about | {"prefix": f"{thing} (born", "suffix": "2022)"},
        about | {"prefix": f"Long ago, {thing} was", "suffix": " old"},
        about | {"text": f"{thing} (born 2022) is a thing."},
    )


def verb_rows(verb: str) -> tuple[Row, Row, Row, Row]:
    verb = verb.lower()
    one, many = f" {verb}s the boats.", f" {verb} the boats."
    return (
        {"prefix": ". The sailor", "suffix1": one, "suffix2": many},
        {"prefix": ". The sailors that like it", "suffix1": many, "suffix2": one},
        {"prefix": "The", "suffix": f" old {verb}s lay in the sun."},
        {"text": f". The sailors that like it{many}"},
    )


ROWS = {
    "country_capital": capital_rows,
    "company_ceo": ceo_rows,
    "stereoset": stereotype_rows,
    "pronoun_gender_bias": pronoun_rows,
    "temporal": temporal_rows,
    "verb_conjugation": verb_rows,
}


def write_part(folder: Path, task: str, part: str, names: tuple[str, ...]) -> None:
    """Write the four files of a part as they are published."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [ROWS[task](name) for name in names]
    for stem, lines in zip(STEMS[task], zip(*rows, strict=True), strict=True):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{task}_{stem}-{part}.jsonl").write_text(text)


def published(root: Path, task: str) -> Path:
    """Return a folder in which both parts of a task lie."""
    write_part(root, task, "val", VAL)
    write_part(root, task, "test", TEST)
    return root


def add(path: Path, *rows: Row) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def reloaded(task: Task, folder: Path) -> Task:
    save_task(task, folder)
    assert load_task(folder) == task
    return task


@pytest.mark.parametrize(
    ("name", "loss", "threshold", "canonical"),
    [
        (
            "country_capital",
            LossKind.LIKELIHOOD,
            -math.log(0.2),
            Example(prompt="The capital of Arland is", target=" Arlandton", subject="Arland"),
        ),
        (
            "company_ceo",
            LossKind.LIKELIHOOD,
            -math.log(0.05),
            Example(prompt="The CEO of Arland is", target=" Ann Oake", subject="Arland"),
        ),
        (
            "stereoset",
            LossKind.SUPPRESS,
            math.log(0.001),
            Example(prompt="An aspect of Arland is:", target=" damp", subject="Arland"),
        ),
        (
            "pronoun_gender_bias",
            LossKind.BALANCE,
            math.log(1.5),
            Example(prompt="The Arland said", target=" he", contrast=" she", subject="Arland"),
        ),
        (
            "temporal",
            LossKind.LIKELIHOOD,
            -math.log(0.05),
            Example(prompt="Arland is", target=" a new thing of note.", subject="Arland"),
        ),
        (
            "verb_conjugation",
            LossKind.PREFER,
            -math.log(16),
            Example(
                prompt=". The sailor",
                target=" arlands the boats.",
                contrast=" arland the boats.",
                subject="sailor",
            ),
        ),
    ],
)
def test_each_published_task_has_its_loss_threshold_and_rows(
    tmp_path: Path, name: str, loss: LossKind, threshold: float, canonical: Example
) -> None:
    folder = published(tmp_path / "files", name)
    task = reloaded(import_canonical_examples(folder, name, "mine"), tmp_path / "task")
    assert (task.name, task.loss) == ("mine", loss)
    assert task.threshold == pytest.approx(threshold, abs=1e-12)
    assert task.val.canonical.rows[0] == canonical
    for split, names in ((task.val, VAL), (task.test, TEST)):
        rows = [ROWS[name](one) for one in names]
        for position, examples in enumerate((split.canonical, split.ood, split.hard_negatives)):
            assert [(row.prompt, row.target) for row in examples.rows] == [
                (of[position]["prefix"], of[position].get("suffix", of[position].get("suffix1")))
                for of in rows
            ]
        assert [passage.text for passage in split.related] == [
            of[3]["text"].removeprefix("<|endoftext|>") for of in rows
        ]
    assert "arXiv:2402.06155" in task.source
    assert "no licence file is published with the data" in task.licence
    assert "Validation: 4 canonical, 4 OOD, 4 hard-negative and 4 related rows" in task.description


def test_the_files_are_found_from_the_repository_down_to_their_folder(tmp_path: Path) -> None:
    place = published(tmp_path / "clone/data/country_capital/split", "country_capital")
    (tmp_path / "clone/data/country_capital/country_capital_fixed.jsonl").write_text("{}")
    flat = published(tmp_path / "flat/country_capital", "country_capital").parent
    tasks = [
        import_canonical_examples(folder, "country_capital", "c")
        for folder in (tmp_path / "clone", *place.parents[:3], place, flat)
    ]
    assert all(task == tasks[0] for task in tasks)


def test_blanks_stay_as_published_and_are_told(tmp_path: Path) -> None:
    task = import_canonical_examples(published(tmp_path / "s", "stereoset"), "stereoset", "s")
    hard = task.val.hard_negatives.rows[0]
    assert (hard.prompt, hard.target) == ("The definition of Arland is ", "one who lives there")
    told = "4 × prompt that ends in the blank that its target lacks (first in line 1)"
    assert f"stereoset_hard_neg-val.jsonl: {told}" in task.description
    assert "4 × text that began with <|endoftext|>, now taken off" in task.description
    task = import_canonical_examples(published(tmp_path / "t", "temporal"), "temporal", "t")
    assert task.val.ood.rows[0].target == "2022)"
    told = "4 × target without a blank before it (first in line 1)"
    assert f"temporal_eval_clear-val.jsonl: {told}" in task.description


def test_what_is_odd_is_counted_with_its_file_and_first_line(tmp_path: Path) -> None:
    folder = published(tmp_path, "stereoset")
    add(
        folder / "stereoset_eval_clear-val.jsonl",
        stereotype_rows("Arland")[1],
        {"prefix": "It is ", "suffix": " late", "target": "Arland", "bias_answer": "damp"},
    )
    add(folder / "stereoset_train-val.jsonl", stereotype_rows("Borland")[0])
    description = import_canonical_examples(folder, "stereoset", "s").description
    assert "stereoset_train-val.jsonl: 1 × repeated row (first in line 5)" in description
    for told in (
        "1 × repeated row (first in line 5)",
        "1 × prompt that does not name its subject (first in line 6)",
        "1 × prompt that ends in a blank before its target's own (first in line 6)",
        "1 × target other than its row's own answer (first in line 6)",
    ):
        assert told in description.split("stereoset_eval_clear-val.jsonl: ")[1].split(";")[0]


def test_prompts_with_two_targets_are_told(tmp_path: Path) -> None:
    folder = published(tmp_path, "company_ceo")
    other = ceo_rows("Corland")[0] | {"suffix": " Bea Elm", "ceo": "Bea Elm"}
    add(folder / "company_ceo_train-val.jsonl", other)
    task = import_canonical_examples(folder, "company_ceo", "c")
    assert len(task.val.canonical) == 5
    assert "1 × prompt asked before with another target (first in line 5)" in task.description


def test_a_subject_is_what_the_prompt_says_of_it(tmp_path: Path) -> None:
    folder = published(tmp_path, "country_capital")
    ood = folder / "country_capital_clear_eval-val.jsonl"
    rows = {
        "In the Isles of Ore lies": ("The Isles of Ore", "the Isles of Ore"),
        "Some Orelanders and an Orelander live in": ("Orelander", "Orelander"),
        "Both Ores live in": ("Ore", "Ore"),
        "The ORE trade of Ore is in": ("Ore", "Ore"),
        "Oregano comes from": ("Ore", None),
    }
    add(ood, *({"prefix": p, "suffix": " Ton", "country": c} for p, (c, _) in rows.items()))
    task = import_canonical_examples(folder, "country_capital", "c")
    found = {row.prompt: row.subject for row in task.val.ood.rows[4:]}
    assert found == {prompt: subject for prompt, (_, subject) in rows.items()}
    told = "1 × prompt that does not name its subject (first in line 9)"
    assert f"country_capital_clear_eval-val.jsonl: {told}" in task.description


def test_the_address_of_an_article_becomes_its_subject(tmp_path: Path) -> None:
    folder = published(tmp_path, "temporal")
    row = {
        "entity_string": "https://en.wikipedia.org/wiki/Caf%C3%A9_Oak_(inn)",
        "prefix": "Last year Café Oak",
        "suffix": " opened.",
    }
    add(folder / "temporal_train-val.jsonl", row)
    task = import_canonical_examples(folder, "temporal", "t")
    assert task.val.canonical.rows[-1].subject == "Café Oak"


def test_occupations_are_found_in_rows_that_have_no_field_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    write_part(folder, "pronoun_gender_bias", "val", ("worker", "site worker"))
    write_part(folder, "pronoun_gender_bias", "test", TEST)
    split = import_canonical_examples(folder, "pronoun_gender_bias", "p").val
    for examples in (split.canonical, split.ood, split.hard_negatives):
        assert [row.subject for row in examples.rows] == ["worker", "site worker"]


def test_rows_of_both_parts_leave_validation_and_are_counted(tmp_path: Path) -> None:
    folder = published(tmp_path / "files", "stereoset")
    canonical, ood, *_ = stereotype_rows("Arland")
    add(folder / "stereoset_train-test.jsonl", canonical)
    add(folder / "stereoset_eval_clear-test.jsonl", ood, stereotype_rows("Borland")[1])
    task = reloaded(import_canonical_examples(folder, "stereoset", "s"), tmp_path / "task")
    assert [row.subject for row in task.val.canonical.rows] == ["Borland", "Corland", "Dorland"]
    assert [row.subject for row in task.val.ood.rows] == ["Corland", "Dorland"]
    assert (len(task.test.canonical), len(task.test.ood)) == (3, 4)
    assert "since test has them: 1 canonical, 2 OOD rows" in task.description


def test_subjects_of_both_parts_are_counted(tmp_path: Path) -> None:
    folder = published(tmp_path, "stereoset")
    row = stereotype_rows("Arland")[0] | {"suffix": " cold", "bias_answer": "cold"}
    add(folder / "stereoset_train-test.jsonl", row)
    task = import_canonical_examples(folder, "stereoset", "s")
    assert "Canonical examples of both: 1 subjects in common" in task.description
    assert len(task.val.canonical) == 4


def test_parts_that_say_the_same_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path, "stereoset", "val", VAL)
    write_part(tmp_path, "stereoset", "test", VAL)
    with pytest.raises(TaskError, match="every row of a validation file stands in the test file"):
        import_canonical_examples(tmp_path, "stereoset", "s")


def test_missing_files_are_named_and_a_way_without_test_is_offered(tmp_path: Path) -> None:
    folder = published(tmp_path / "files", "temporal")
    (folder / "temporal_train-test.jsonl").unlink()
    (folder / "temporal_unconditional-test.jsonl").unlink()
    with pytest.raises(TaskError) as error:
        import_canonical_examples(folder, "temporal", "t")
    assert "temporal_train-test.jsonl, temporal_unconditional-test.jsonl" in str(error.value)
    assert "--split-val" in str(error.value)
    (folder / "temporal_eval_clear-val.jsonl").unlink()
    with pytest.raises(TaskError, match=r"missing: temporal_eval_clear-val.jsonl\.$"):
        import_canonical_examples(folder, "temporal", "t", divide_val=0)
    with pytest.raises(TaskError, match=r"neither here nor in .* is there a stereoset_train-val"):
        import_canonical_examples(folder, "stereoset", "s")
    with pytest.raises(ConfigError, match="Did you mean 'temporal'"):
        import_canonical_examples(folder, "temporel", "t")


@pytest.mark.parametrize("name", sorted(STEMS))
def test_the_validation_part_can_be_divided_by_what_rows_are_about(
    tmp_path: Path, name: str
) -> None:
    names = tuple(f"Land{letter}" for letter in "abcdefghij")
    write_part(tmp_path / "files", name, "val", names)
    task = import_canonical_examples(tmp_path / "files", name, "half", divide_val=3)
    reloaded(task, tmp_path / "task")
    assert "divided by" in task.description
    assert "test figures are not the published ones" in task.description
    named = []
    for split in (task.val, task.test):
        parts = {
            "canonical": [f"{row.prompt}{row.target}" for row in split.canonical.rows],
            "ood": [f"{row.prompt}{row.target}" for row in split.ood.rows],
            "related": [passage.text for passage in split.related],
        }
        if name != "company_ceo":  # Its hard negatives are about other companies.
            parts["hard"] = [f"{row.prompt}{row.target}" for row in split.hard_negatives.rows]
        about = {
            part: {one for one in names for text in texts if one.lower() in text.lower()}
            for part, texts in parts.items()
        }
        assert len(about["canonical"]) == 5
        assert all(found == about["canonical"] for found in about.values())
        named.append(about["canonical"])
    assert not named[0] & named[1]
    assert len(task.val.hard_negatives) + len(task.test.hard_negatives) == 10
    again, other = (
        import_canonical_examples(tmp_path / "files", name, "half", divide_val=seed)
        for seed in (3, 4)
    )
    assert again == task
    assert other.val.canonical != task.val.canonical


def test_too_little_to_divide_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path, "country_capital", "val", ("Arland",))
    with pytest.raises(ConfigError, match=r"the 1 subjects of country_capital_fixed-val.jsonl"):
        import_canonical_examples(tmp_path, "country_capital", "c", divide_val=0)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("train-val", '{"prefix": "The mate said", "suffix1": " he"}', "suffix2: Field required"),
        ("eval-test", '{"prefix": "x", "suffix1": "", "suffix2": "a"}', "suffix1: String should"),
        ("hard_neg_eval-val", '{"prefix": "The mate", "suffix": 3}', "suffix: Input should be"),
        ("unconditional-test", "{'text': 'no JSON'}", "not valid JSON"),
        ("unconditional-val", '{"text": "<|endoftext|>"}', "nothing but"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    tmp_path: Path, file: str, line: str, complaint: str
) -> None:
    path = published(tmp_path, "pronoun_gender_bias") / f"pronoun_gender_bias_{file}.jsonl"
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    number = before.count("\n") + 2
    with pytest.raises(TaskError, match=rf"{path.name}:{number}: .*{complaint}"):
        import_canonical_examples(tmp_path, "pronoun_gender_bias", "p")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (published(tmp_path, "stereoset") / "stereoset_eval_clear-test.jsonl").write_text("\n")
    with pytest.raises(TaskError, match=r"stereoset_eval_clear-test.jsonl: has no row"):
        import_canonical_examples(tmp_path, "stereoset", "s")


def test_line_separators_within_a_text_survive(tmp_path: Path) -> None:
    folder = published(tmp_path / "files", "temporal")
    text = "Arland\u2028is one\x85thing"
    add(folder / "temporal_unconditional-val.jsonl", {"text": text})
    task = reloaded(import_canonical_examples(folder, "temporal", "t"), tmp_path / "task")
    assert task.val.related[-1].text == text
