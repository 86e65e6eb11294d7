"""What holds for every editor, present and future: the folder is the list."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.tiny_models import make_tiny_model, save_model
from tests.support.tokenizers_of_each_kind import make_tokenizer
from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.likelihood import encode_examples, training_losses
from tuner.editing.model import LanguageModel, is_model_name, load_model
from tuner.editing.task import ExampleSet, Split
from tuner.editors import editor_names, find_editor
from tuner.errors import ConfigError
from tuner.search.space import load_space

# Only a Backpack has what these change.
NEEDS_SENSES = {"ensemble", "senses"}


def _make(name: str, small: str, tiny: str) -> Editor:
    kind = find_editor(name)
    folders = {"backpack": small, "gpt_neox": tiny}
    settings = dict(kind.smoke_settings)
    for field, info in kind.model_fields.items():
        if is_model_name(info) and field in settings:
            settings[field] = folders[str(settings[field])]
    return kind.model_validate(settings)


@pytest.fixture(params=editor_names())
def editor(request: pytest.FixtureRequest, small: str, tiny: str) -> Editor:
    return _make(str(request.param), small, tiny)


@pytest.fixture
def aux(corpus: Corpus, training: Split, device: str) -> Auxiliary:
    return Auxiliary(general=corpus, training=training, companions=Companions(device))


@pytest.fixture
def base(editor: Editor, model: LanguageModel, device: str) -> LanguageModel:
    """A tiny model of each family in turn, where the editor can edit it."""
    try:
        editor.check_model(model, Companions(device))
    except ConfigError as error:
        pytest.skip(str(error))
    return model


@pytest.fixture
def one(editor: Editor, neox: LanguageModel, backpack: LanguageModel, device: str) -> LanguageModel:
    """A tiny GPT-NeoX model, or a Backpack for editors that need one."""
    try:
        editor.check_model(neox, Companions(device))
    except ConfigError:
        return backpack
    return neox


def _edit(
    editor: Editor, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, seed: int = 0
) -> Iterator[Delta]:
    return (step.delta for step in editor.edit(model, examples, aux, seed=seed))


def _same(one: Delta, other: Delta) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_model_is_bit_identical_after_and_between_epochs(
    editor: Editor, base: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    for delta in _edit(editor, base, examples, aux):
        base.check_unchanged()
        with base.edited(delta):
            pass
        base.check_unchanged()
    assert not any(weight.requires_grad for weight in base.network.parameters())
    assert all(weight.grad is None for weight in base.network.parameters())


def test_the_edit_lowers_the_loss_of_its_examples(
    editor: Editor, base: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    rows = encode_examples(base, examples.rows)
    with torch.no_grad():
        before = training_losses(base.network, examples.loss, rows, base.end_id).mean()
        *_, last = _edit(editor, base, examples, aux)
        with base.edited(last):
            after = training_losses(base.network, examples.loss, rows, base.end_id).mean()
    if not editor.works_on_random_models:
        assert after != before
    else:
        assert after < before


@pytest.fixture(scope="module")
def like_mistral(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Mistral whose tokenizer puts a mark and a blank before each text."""
    folder = tmp_path_factory.mktemp("mistral")
    return save_model(make_tiny_model("mistral", make_tokenizer("prepend")), folder)


@pytest.mark.parametrize("name", [name for name in editor_names() if name not in NEEDS_SENSES])
def test_blanks_and_marks_before_a_text_are_none_before_a_target(
    name: str, like_mistral: str, examples: ExampleSet, aux: Auxiliary, device: str
) -> None:
    base = load_model(like_mistral, device=device)
    editor = _make(name, like_mistral, like_mistral)
    editor.check_model(base, Companions(device))
    rows = encode_examples(base, examples.rows)
    told = [base.tokenizer.decode(row.target.ids[row.target.start :]) for row in rows]
    assert told == ["Port Louis", "Lome", "Santiago"]  # decoded, the first blank is left out
    with torch.no_grad():
        before = training_losses(base.network, examples.loss, rows, base.end_id)
        *_, last = _edit(editor, base, examples, aux)
        with base.edited(last):
            after = training_losses(base.network, examples.loss, rows, base.end_id)
    base.check_unchanged()
    if not editor.works_on_random_models:
        assert after.mean() != before.mean()
    else:
        assert after.mean() < before.mean()
    *_, again = _edit(editor, base, examples, aux)
    assert _same(last, again)


def test_same_seed_same_bits_whatever_ran_before(
    editor: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    *_, first = _edit(editor, one, examples, aux, seed=3)
    torch.manual_seed(99)
    torch.randn(1000)
    *_, other = _edit(editor, one, examples, aux, seed=4)
    *_, again = _edit(editor, one, examples, aux, seed=3)
    assert _same(first, again)
    assert _same(first, other) == editor.deterministic


def test_global_random_state_is_left_alone(
    editor: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    state = torch.random.get_rng_state()
    for _ in _edit(editor, one, examples, aux):
        pass
    assert torch.equal(state, torch.random.get_rng_state())


def test_evaluation_between_epochs_changes_nothing(
    editor: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> None:
    *_, undisturbed = _edit(editor, one, examples, aux)
    for delta in _edit(editor, one, examples, aux):
        with one.edited(delta):
            one.complete("The capital of Togo is", max_new_tokens=2)
        last = delta
    assert _same(undisturbed, last)


def test_every_field_says_what_it_is(editor: Editor) -> None:
    for name, field in type(editor).model_fields.items():
        assert field.description, f"{editor.name()}.{name} has no description"


@pytest.mark.parametrize("name", editor_names())
def test_the_shipped_space_settles_every_field(name: str) -> None:
    space = load_space(name)
    (branch,) = space.branches
    assert branch.name == name
    assert branch.search, "a space must search something"
    # What a space does not mention has a default in the code, where it is documented.
    required = {key for key, field in branch.editor.model_fields.items() if field.is_required()}
    assert required <= branch.fixed.keys() | branch.search.keys()
    ends = {key: list(dimension.extremes.values()) for key, dimension in branch.search.items()}
    for key, values in ends.items():
        middle = {other: values[0] for other, values in ends.items()}
        for value in values:
            branch.build({**middle, key: value})


def test_unknown_editors_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        find_editor("lorra")
    with pytest.raises(ConfigError, match=r"is not a class of editors|is not a whole editor"):
        find_editor("tuner.editing.corpus:Corpus")


def test_outsiders_come_in_by_path() -> None:
    assert find_editor("tuner.editors.lora:Lora").name() == "lora"
