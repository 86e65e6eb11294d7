"""Text is tokenised as it will be read: on a tokenizer of each kind that models come with."""

from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from tests.support.tokenizers_of_each_kind import BOS, EOS, KINDS, TEXTS, make_tokenizer
from tuner.editing.corpus import BuiltinDocuments, FileDocuments, GeneralText, TextPart
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_continuation, encode_example
from tuner.editing.model import LanguageModel, load_model
from tuner.editing.sampling import prepend
from tuner.editing.subject import locate_subject
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.editing.task_folder import load_task
from tuner.editing.tokens import TextReader
from tuner.editors import find_editor
from tuner.editors._retrieval.edit_text import EditText, answer_after, continuation_after
from tuner.errors import ConfigError
from tuner.evaluation.success import SuccessMeter
from tuner.testing.tiny_models import make_tiny_model, save_model

PAIRS = (
    ("The capital of Mauritius is", " Port Louis"),
    ("The capital of Togo is", " Lome, and a big town."),
    ("日本の首都は", "東京"),
    ("He is a singer", ", who sings"),
    ("The capital is ", "Lome"),
    ("The capi", "tal of Togo"),
    ("The city of 東", "京😀é is"),
    ("😀", "😀 is"),
    ("", " Port Louis"),
    ("", "東京"),
    ("The capital of Chile is", "\nSantiago"),
)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def of_kind(kind: str) -> LanguageModel:
    """A tiny Mistral whose tokenizer is of each kind in turn."""
    return make_tiny_model("mistral", make_tokenizer(kind))


def _whole(model: LanguageModel, text: str) -> list[int]:
    """Return what the tokenizer itself makes of a text, without a mark at its end."""
    ids = model.tokenizer(text)["input_ids"]
    plain = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[len(ids) - len(plain) :] == plain else ids[:-1]


def _tokens(model: LanguageModel, ids: tuple[int, ...]) -> list[str]:
    return list(model.tokenizer.convert_ids_to_tokens(list(ids)))


def test_prompt_and_target_are_the_tokens_of_the_whole_text(of_kind: LanguageModel) -> None:
    for prompt, target in PAIRS:
        found = encode_continuation(of_kind, prompt, target)
        whole = _whole(of_kind, f"{prompt}{target}")
        begins = prompt or of_kind.texts.lead
        assert list(found.ids) == (whole if begins else [of_kind.end_id, *whole])


def test_a_target_has_the_tokens_that_it_has_after_its_prompt(of_kind: LanguageModel) -> None:
    for prompt, target in PAIRS:
        found = encode_continuation(of_kind, prompt, target)
        # The tokenizer's own word on the first characters, which ends before the target begins.
        before = len(_whole(of_kind, f"{prompt}{target}")) - found.target_length
        offsets = TextReader(of_kind.tokenizer).read([(f"{prompt}{target}",)])[0].spans
        assert all(last <= len(prompt) for _, last in offsets[:before])
        assert offsets[before][1] > len(prompt)


@pytest.mark.parametrize(
    ("kind", "prompt", "target", "tokens"),
    [
        ("prepend", "The capital of Mauritius is", " Port Louis", ["▁Port", "▁Louis"]),
        ("prepend", "日本の首都は", "東京", ["東京"]),
        ("prepend", "He is a singer", ", who", [",", "▁who"]),
        ("prepend", "", "東京", ["▁", "東京"]),
        ("metaspace_always", "日本の首都は", "東京", ["東京"]),
        ("metaspace_first", "He is a singer", ", who", [",", "▁who"]),
        ("metaspace_never", "The capital of Togo is", " Lome", ["▁Lome"]),
        ("byte_level", "The capital of Togo is ", "Lome", ["ĠLome"]),
        ("byte_level_trimmed", "The capital of Togo is", " Lome", ["ĠLome"]),
        ("byte_level_trimmed", "The capital of Togo is  ", "Lome", ["ĠLome"]),
        ("byte_level_bos_eos", "The capital of Togo is", " Lome", ["ĠLome"]),
        ("word_pieces", "The capital of Togo is", " Lome", ["lome"]),
    ],
)
def test_targets_by_kind(kind: str, prompt: str, target: str, tokens: list[str]) -> None:
    model = make_tiny_model("llama", make_tokenizer(kind))
    found = encode_continuation(model, prompt, target)
    assert _tokens(model, found.ids[found.start :]) == tokens


def test_only_what_stands_in_front_of_a_text_is_put_there(of_kind: LanguageModel) -> None:
    marks = of_kind.tokenizer("a")["input_ids"]
    assert list(of_kind.texts.lead) == marks[:1] * (marks[0] == of_kind.tokenizer.bos_token_id)
    end = of_kind.tokenizer.eos_token_id
    assert of_kind.texts.trail == ((end,) if marks[-1] == end else ())
    for prompt, target in PAIRS:
        example = Example(prompt=prompt, target=target, contrast=" Lome")
        for row in (
            encode_example(of_kind, example).target,
            encode_example(of_kind, example).contrast,
        ):
            assert row is not None
            assert end not in row.ids[1:]
        if prompt:
            assert end not in of_kind.encode_prompt(prompt)


def test_a_prompt_that_brings_its_first_mark_does_not_get_it_twice(of_kind: LanguageModel) -> None:
    begin = of_kind.tokenizer.bos_token_id
    ids = of_kind.encode_prompt(f"{BOS}The capital of Togo is")
    assert ids.count(begin) == 1
    assert ids[0] == begin
    found = encode_continuation(of_kind, f"{BOS}The capital of Togo is", " Lome")
    assert found.ids.count(begin) == 1
    assert list(found.ids[: found.start]) == ids
    assert encode_continuation(of_kind, BOS, " Lome").start == 1


def test_what_stands_before_such_a_prompt_stands_behind_its_first_mark() -> None:
    model = make_tiny_model("mistral", make_tokenizer("prepend"))
    prompt = f"{BOS}The capital of Togo is"
    assert prepend(model, "It is big", prompt) == f"{BOS}It is big. The capital of Togo is"
    found = locate_subject(model, prompt, "Togo", prefix="It is big", target=" Lome")
    assert found.ids.count(model.tokenizer.bos_token_id) == 1
    assert _tokens(model, found.ids)[found.position] == "▁Togo"
    edit = EditText(prompt=prompt, target=" Lome")
    _, read = answer_after(model.texts, edit, " ", prompt, " Lome", most=100)
    assert read.ids.count(model.tokenizer.bos_token_id) == 1
    assert model.texts.decode_prompt(model.encode_prompt(prompt)) == "The capital of Togo is"


def test_an_empty_prompt_is_the_first_mark_or_the_end_of_text(of_kind: LanguageModel) -> None:
    lead = list(of_kind.texts.lead)
    assert of_kind.encode_prompt("") == (lead or [of_kind.end_id])
    assert encode_continuation(of_kind, "", "東京").start == 1


def test_blocks_of_general_text_begin_as_the_family_s_text_begins(
    of_kind: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number}. {TEXTS[number % 4]}\n" for number in range(400)))
    general = GeneralText(FileDocuments(path), of_kind, block_length=16)
    lead = list(of_kind.texts.lead)
    corpus = general.corpus(TextPart.CONFIRMATION)
    assert corpus.blocks[:, : len(lead)].tolist() == [lead] * len(corpus.blocks)
    assert corpus.predicted_tokens == len(corpus.blocks) * 15
    # What follows is the text, in its order, and each document ends with the end of text.
    wanted = [
        [*of_kind.tokenizer(text, add_special_tokens=False)["input_ids"], of_kind.end_id]
        for text in FileDocuments(path).documents(TextPart.CONFIRMATION)
    ]
    stream = [token for document in wanted for token in document]
    own = 16 - len(lead)
    order = torch.randperm(len(corpus.blocks), generator=torch.Generator().manual_seed(0)).tolist()
    for row, place in enumerate(order):
        assert corpus.blocks[row, len(lead) :].tolist() == stream[place * own : (place + 1) * own]


def test_blocks_too_short_for_the_first_mark_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model("mistral", make_tokenizer("prepend"))
    with pytest.raises(ConfigError, match="longer than the 1 special tokens"):
        GeneralText(BuiltinDocuments(), model, block_length=1).corpus(TextPart.SEARCH)


def test_the_subject_ends_where_its_characters_end_whatever_the_tokenizer(
    of_kind: LanguageModel,
) -> None:
    spelt = of_kind.tokenizer.decode
    for prompt, subject, target in (
        ("The capital of Mauritius is", "Mauritius", " Port Louis"),
        ("東京は大きい", "東京", "です"),
        ("Togo", "Togo", " is a town"),
    ):
        found = locate_subject(of_kind, prompt, subject, target=target)
        row = encode_continuation(of_kind, prompt, target)
        assert (found.ids, found.start) == (row.ids, row.start)
        assert found.position < found.start
        said = spelt(list(found.ids[: found.position + 1]), skip_special_tokens=True)
        before = spelt(list(found.ids[: found.position]), skip_special_tokens=True)
        end = prompt.index(subject) + len(subject)
        bare = prompt[:end].replace(" ", "").lower()
        assert said.replace(" ", "").lower().startswith(bare)
        assert not before.replace(" ", "").lower().startswith(bare)


def test_a_vector_is_written_before_the_target_where_its_token_is_the_target_s() -> None:
    model = make_tiny_model("mistral", make_tokenizer("byte_level"))
    found = locate_subject(model, "The capital of Lo", "Lo", target="me")
    assert _tokens(model, found.ids[found.start :]) == ["ĠLome"]
    assert found.position == found.start - 1


def test_an_edit_a_prompt_and_an_answer_are_one_text(of_kind: LanguageModel) -> None:
    edit = EditText(prompt="The capital of Togo is", target=" Lome")
    prompt, answer = "The town of Togo is", " Lome, and big"
    given, read = answer_after(of_kind.texts, edit, " ", prompt, answer, most=100)
    assert list(read.ids) == _whole(of_kind, f"{edit.text} {prompt}{answer}")
    assert list(read.ids[:given]) == _whole(of_kind, edit.text)
    row = encode_continuation(of_kind, prompt, answer)
    # A memory knows the prompt by its tokens alone.
    again = continuation_after(
        of_kind.texts,
        edit,
        " ",
        of_kind.texts.decode_prompt(row.ids[: row.start]),
        row.ids[row.start :],
        most=100,
    )
    assert again == read


def test_what_was_asked_of_a_tokenizer_before_changes_nothing(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    model = make_tiny_model("mistral", tokenizer)
    before = encode_continuation(model, *PAIRS[0]), model.fingerprint
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.enable_truncation(4)
    again = LanguageModel(model.network, tokenizer, id="again")
    assert (encode_continuation(again, *PAIRS[0]), again.fingerprint) == before
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert again.encode("Togo") == model.encode("Togo")
    tokenizer.backend_tokenizer.no_padding()


def test_a_tokenizer_that_cannot_tell_its_tokens_characters_is_refused(
    neox: LanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"ByT5Tokenizer.*does not tell which characters"):
        TextReader(ByT5Tokenizer())
    folder = tmp_path / "model"
    save_model(neox, folder)
    for file in folder.glob("*token*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="does not tell which characters"):
        load_model(str(folder))


def _split(*pairs: tuple[str, str]) -> Split:
    rows = tuple(Example(prompt=prompt, target=target) for prompt, target in pairs)
    some = ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)
    none = ExampleSet(loss=LossKind.LIKELIHOOD, rows=())
    return Split(canonical=some, ood=some, hard_negatives=none)


@pytest.mark.parametrize("kind", ["byte_level_eos", "prepend", "metaspace_always"])
def test_a_model_that_answers_rightly_is_exact(kind: str) -> None:
    """A teacher of two blanks, or of a target behind an end mark, would not be heard."""
    model = make_tiny_model("mistral", make_tokenizer(kind))
    split = _split(*PAIRS[:4])
    meter = SuccessMeter(model, split, threshold=1.0)
    assert meter.scores().exact == 0
    editor = find_editor("full_finetuning")(learning_rate=5e-3, epochs=80)
    blocks = GeneralText(
        BuiltinDocuments(), model, block_length=16, tokens={TextPart.AUXILIARY: 512}
    )
    aux = Auxiliary(general=blocks.corpus(TextPart.AUXILIARY))
    *_, last = editor.edit(model, split.canonical, aux, seed=0)
    with model.edited(last.delta):
        assert meter.scores().exact == 1
        assert [model.complete(prompt, 12)[: len(target)] for prompt, target in PAIRS[:4]] == [
            target for _, target in PAIRS[:4]
        ]


def test_a_prompt_that_ends_in_a_blank_is_given_as_it_is_typed() -> None:
    """Together the blank belongs to the target; a user who types it sees what follows the blank."""
    model = make_tiny_model("mistral", make_tokenizer("byte_level"))
    meter = SuccessMeter(model, _split(("The capital of Togo is ", "Lome")), threshold=1.0)
    (row,), (typed,) = meter._ood.targets, meter._ood.prompts
    assert _tokens(model, tuple(typed)) == [*_tokens(model, row.ids[: row.start]), "Ġ"]
    said = model.encode("Lome")
    assert len(said) > row.target_length
    assert meter._ood.rooms == (len(said),)
    assert meter._says(typed, said, row)
    assert not meter._says(typed, model.encode("Chile"), row)
    assert not meter._says(typed, said[:-1], row)


def test_what_a_model_says_keeps_its_first_blank() -> None:
    model = make_tiny_model("mistral", make_tokenizer("prepend"))
    whole = encode_continuation(model, "The capital of Mauritius is", " Port Louis")
    assert model.decode_after(whole.ids[: whole.start], whole.ids[whole.start :]) == " Port Louis"


@pytest.mark.parametrize("name", ["country_capital", "qa_world", "zsre_world"])
def test_the_built_in_tasks_have_the_tokens_that_they_had(name: str) -> None:
    """Encoded apart and joined, as before: their tokenizer splits between prompt and target."""
    model = load_model("builtin:neox")
    task = load_task(name)
    for split in (task.val, task.test):
        for row in (*split.canonical.rows, *split.ood.rows, *split.hard_negatives.rows):
            found = encode_example(model, row).target
            apart = model.tokenizer([row.prompt, row.target], add_special_tokens=False)["input_ids"]
            assert [list(found.ids[: found.start]), list(found.ids[found.start :])] == apart


def test_the_built_in_text_is_what_it_was() -> None:
    general = GeneralText(
        BuiltinDocuments(), load_model("builtin:neox"), tokens={TextPart.SEARCH: 20_000}
    )
    assert general.corpus(TextPart.SEARCH).hash.startswith("120dacdddfc1e1ea")


def test_the_kinds_differ_as_they_should() -> None:
    """The tests above would prove little on tokenizers that are all alike."""
    made = {kind: make_tokenizer(kind) for kind in KINDS}
    begins = {kind for kind, one in made.items() if one("a")["input_ids"][0] == one.bos_token_id}
    ends = {kind for kind, one in made.items() if one("a")["input_ids"][-1] == one.eos_token_id}
    assert set(KINDS) - begins == {"byte_level", "byte_level_eos"}
    assert ends == {"byte_level_eos", "byte_level_bos_eos", "unigram", "word_pieces"}
    assert all(one.pad_token is None for one in made.values())
    twice: PreTrainedTokenizerFast = made["prepend"]
    assert twice.tokenize(" Port Louis") == ["▁", "▁Port", "▁Louis"]
    assert EOS not in twice.tokenize("Port")
