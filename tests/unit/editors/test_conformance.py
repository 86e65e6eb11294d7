"""What holds for every editor, present and future: the folder is the list."""

import pytest
import torch

from tests.support.tokenizers_of_each_kind import make_tokenizer
from tuner.editing.companions import Companions
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.likelihood import encode_examples, training_losses
from tuner.editing.model import load_model
from tuner.editing.model_names import is_model_name
from tuner.editing.task import ExampleSet
from tuner.editors import editor_names, find_editor
from tuner.errors import ConfigError
from tuner.search.dimensions import extremes
from tuner.search.space_file import load_space
from tuner.testing.editors import EditorContract, edits_of, same_bits
from tuner.testing.tiny_models import make_tiny_model, save_model


class TestEveryEditor(EditorContract):
    @pytest.fixture(params=editor_names())
    def kind(self, request: pytest.FixtureRequest) -> type[Editor]:
        return find_editor(str(request.param))

    @pytest.fixture(scope="class")
    @classmethod
    def like_mistral(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        """The folder of a tiny Mistral whose tokenizer puts a mark and a blank before each text."""
        folder = tmp_path_factory.mktemp("mistral")
        return save_model(make_tiny_model("mistral", make_tokenizer("prepend")), folder)

    @pytest.fixture
    def like_mistral_all(self, kind: type[Editor], like_mistral: str) -> Editor:
        """The editor, with companions that share the tokenizer of the edited model."""
        settings: dict[str, object] = dict(kind.smoke_settings)
        names = [name for name, field in kind.model_fields.items() if is_model_name(field)]
        return kind.model_validate(
            {**settings, **{name: like_mistral for name in names if name in settings}}
        )

    def test_blanks_and_marks_before_a_text_are_none_before_a_target(
        self,
        like_mistral: str,
        like_mistral_all: Editor,
        examples: ExampleSet,
        aux: Auxiliary,
        device: str,
    ) -> None:
        base, made = load_model(like_mistral, device=device), like_mistral_all
        try:
            made.check_model(base, Companions(device))
        except ConfigError as refusal:
            pytest.skip(str(refusal))
        rows = encode_examples(base, examples.rows)
        targets = [base.tokenizer.decode(row.target.ids[row.target.start :]) for row in rows]
        # Decoded, the first blank is left out.
        assert targets == ["Port Louis", "Lome", "Santiago"]
        with torch.no_grad():
            before = training_losses(base.network, examples.loss, rows, base.end_id)
            *_, last = edits_of(made, base, examples, aux)
            with base.edited(last):
                after = training_losses(base.network, examples.loss, rows, base.end_id)
        base.check_unchanged()
        if made.works_on_random_models:
            assert after.mean() < before.mean()
        else:
            assert after.mean() != before.mean()
        *_, again = edits_of(made, base, examples, aux)
        assert same_bits(last, again)


@pytest.mark.parametrize("name", editor_names())
def test_the_shipped_space_settles_every_field(name: str) -> None:
    space = load_space(name)
    (branch,) = space.branches
    assert branch.name == name
    assert branch.search, "a space must search something"
    # What a space does not mention has a default in the code, where it is documented.
    required = {key for key, field in branch.editor.model_fields.items() if field.is_required()}
    assert required <= branch.fixed.keys() | branch.search.keys()
    ends = {key: list(extremes(dimension).values()) for key, dimension in branch.search.items()}
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
