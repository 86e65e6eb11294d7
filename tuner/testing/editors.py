"""What every editor must keep, as a test class to subclass."""

import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import ClassVar

import numpy as np
import pytest
import torch

from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.likelihood import encode_examples, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.model_names import is_model_name
from tuner.editing.task import ExampleSet, Split
from tuner.errors import ConfigError, EditError
from tuner.testing.tiny_models import DISTINCT_FAMILIES, FAMILIES, make_tiny_model, save_model
from tuner.testing.tiny_task import tiny_corpus, tiny_examples, tiny_task, tiny_training


class EditorContract:
    """Tests that hold for every editor.

    Subclass it in pytest and name the editor:

        class TestMine(EditorContract):
            editor = Mine

    They run the editor with its `smoke_settings` on tiny random models, and demand that

    - `check_task` and `check_model` are called first, and let a task with other edits to train on
      and at least one family of models pass; a model that cannot be edited is refused there, with
      a ConfigError (those families are skipped);
    - an editor turns gradients on itself: steps are asked for inside of `torch.no_grad()` too;
    - the model never changes: not a bit of it, nor does it ask for gradients, during the edit,
      between steps and afterwards; an editor trains a `model.twin(...)`;
    - between two steps the delta may be applied and the model read, which changes nothing;
    - nothing is kept between calls, so that the same seed gives the same bits, whatever ran
      before; another seed gives others, unless the editor says that it is `deterministic`;
    - the global random state of Python, NumPy and torch is left alone;
    - the edit lowers the loss of its examples, unless the editor `works_on_random_models` not;
    - it yields between one step and `step_count`, all finite: an edit that diverges raises
      EditError, and nothing else;
    - every hyperparameter has a description.
    """

    editor: ClassVar[type[Editor]]
    """The class under test."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run what asks for a family on those that differ most, or on all with --all-families."""
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", families_in(metafunc.config))

    @pytest.fixture
    def kind(self) -> type[Editor]:
        """Return the class under test."""
        return self.editor

    @pytest.fixture
    def device(self, request: pytest.FixtureRequest) -> str:
        """Return where the models are put: `--device` where pytest has that option."""
        return str(request.config.getoption("--device", default="cpu"))

    @pytest.fixture(scope="class")
    @classmethod
    def folders(cls) -> dict[str, str]:
        """Return the folders of tiny models made so far, by family."""
        return {}

    @pytest.fixture
    def made(
        self,
        kind: type[Editor],
        folders: dict[str, str],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Editor:
        """Return the editor with its smoke settings, after it saw the task."""
        settings: dict[str, object] = dict(kind.smoke_settings)
        for name, field in kind.model_fields.items():
            if is_model_name(field) and name in settings:
                family = str(settings[name])
                if family not in folders:
                    folder = tmp_path_factory.mktemp(family)
                    folders[family] = save_model(make_tiny_model(family), folder)
                settings[name] = folders[family]
        editor = kind.model_validate(settings)
        editor.check_task(tiny_task(train=tiny_training()))
        return editor

    @pytest.fixture
    def base(self, made: Editor, family: str, device: str) -> LanguageModel:
        """Return a tiny model of each family in turn, where the editor can edit it."""
        model = make_tiny_model(family, device=device)
        try:
            made.check_model(model, Companions(device))
        except ConfigError as refusal:
            pytest.skip(str(refusal))
        return model

    @pytest.fixture
    def one(self, made: Editor, device: str) -> LanguageModel:
        """Return a tiny model of the first family that the editor can edit."""
        refusals: list[str] = []
        for family in ("gpt_neox", *DISTINCT_FAMILIES):
            model = make_tiny_model(family, device=device)
            try:
                made.check_model(model, Companions(device))
            except ConfigError as refusal:
                refusals.append(str(refusal))
            else:
                return model
        pytest.fail(f"{made.name()} can edit no family: {refusals}")

    @pytest.fixture
    def examples(self) -> ExampleSet:
        """Return the edits that are made."""
        return tiny_examples()

    @pytest.fixture
    def corpus(self) -> Corpus:
        """Return the general text."""
        return tiny_corpus()

    @pytest.fixture
    def training(self) -> Split:
        """Return other edits to train on."""
        return tiny_training()

    @pytest.fixture
    def aux(self, corpus: Corpus, training: Split, device: str) -> Auxiliary:
        """Return what the editor may use beyond the examples."""
        return Auxiliary(general=corpus, training=training, companions=Companions(device))

    def test_the_model_is_bit_identical_after_and_between_steps(
        self, made: Editor, base: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """Nothing but `model.edited` changes the model."""
        for delta in edits_of(made, base, examples, aux):
            base.check_unchanged()
            with base.edited(delta):
                pass
            base.check_unchanged()
        assert not any(weight.requires_grad for weight in base.network.parameters())
        assert all(weight.grad is None for weight in base.network.parameters())

    def test_the_edit_lowers_the_loss_of_its_examples_also_under_no_grad(
        self, made: Editor, base: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """An editor works, and turns gradients on itself."""
        rows = encode_examples(base, examples.rows)
        with torch.no_grad():
            before = training_losses(base.network, examples.loss, rows, base.end_id).mean()
            *_, last = edits_of(made, base, examples, aux)
            with base.edited(last):
                after = training_losses(base.network, examples.loss, rows, base.end_id).mean()
        if made.works_on_random_models:
            assert after < before
        else:
            assert after != before

    def test_it_yields_as_many_steps_as_it_says_or_fewer(
        self, made: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """`step_count` is what a search plans with."""
        count = sum(1 for _ in edits_of(made, one, examples, aux))
        assert 1 <= count <= made.step_count

    def test_the_same_seed_gives_the_same_bits_whatever_ran_before(
        self, made: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """Nothing is kept between calls, and chance comes from the seed alone."""
        *_, first = edits_of(made, one, examples, aux, seed=3)
        torch.manual_seed(99)
        torch.randn(1000)
        *_, other = edits_of(made, one, examples, aux, seed=4)
        *_, again = edits_of(made, one, examples, aux, seed=3)
        assert same_bits(first, again)
        assert same_bits(first, other) == made.deterministic

    def test_the_global_random_state_is_left_alone(
        self, made: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """Other trials of the process draw what they would have drawn without this one."""
        states = _random_states()
        for _ in edits_of(made, one, examples, aux):
            pass
        assert _random_states() == states

    def test_evaluation_between_steps_changes_nothing(
        self, made: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """A search measures the model between two steps."""
        *_, undisturbed = edits_of(made, one, examples, aux)
        for delta in edits_of(made, one, examples, aux):
            with one.edited(delta):
                one.complete("The capital of Togo is", max_new_tokens=2)
            last = delta
        assert same_bits(undisturbed, last)

    def test_what_diverges_ends_in_an_edit_error(
        self, made: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """On a model that computes NaN, an editor that reads it raises EditError alone."""
        broken = make_tiny_model(str(one.network.config.model_type), device=str(one.device))
        with torch.no_grad():
            for weight in broken.network.parameters():
                weight.mul_(torch.nan)
        broken = LanguageModel(broken.network, broken.tokenizer, id="broken")
        with suppress(EditError):
            for delta in edits_of(made, broken, examples, aux):
                assert all(bool(torch.isfinite(part).all()) for part in delta.tensors().values())

    def test_it_changes_no_weights_but_those_that_it_names(
        self, made: Editor, one: LanguageModel, examples: ExampleSet, aux: Auxiliary
    ) -> None:
        """The gradient that is prepared knows all that an edit may change."""
        *_, delta = edits_of(made, one, examples, aux)
        if isinstance(delta, WeightDelta):
            assert set(delta.changed) <= set(type(made).weights_of(one))

    def test_every_field_says_what_it_is(self, kind: type[Editor]) -> None:
        """Descriptions are the help text."""
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no description"


def families_in(config: pytest.Config) -> tuple[str, ...]:
    """Return the families to try: all with the option `--all-families`, where pytest has it."""
    return FAMILIES if config.getoption("--all-families", default=False) else DISTINCT_FAMILIES


def edits_of(
    editor: Editor, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, seed: int = 0
) -> Iterator[Delta]:
    """Yield the delta of each step."""
    return (step.delta for step in editor.edit(model, examples, aux, seed=seed))


def same_bits(one: Delta, other: Delta) -> bool:
    """Return whether two deltas hold the same tensors."""
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _random_states() -> Mapping[str, object]:
    generator, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (generator, np.asarray(keys).tolist(), rest),
        "torch": torch.random.get_rng_state().tolist(),
    }
