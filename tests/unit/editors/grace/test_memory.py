"""A codebook grows by its rules, and its values stand where they should."""

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_example, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import prompts_end_at
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.editors.grace.codebook import Codebook, Expansion, Targets
from tuner.editors.grace.editor import Grace
from tuner.editors.grace.memory import GraceDelta, Replacement
from tuner.errors import ConfigError

LOME: Targets = (" Lome",)
SANTIAGO: Targets = (" Santiago",)
# One target has more tokens than the other.
LONGER: Targets = (" Port Louis",)


def _book(*edits: tuple[float, Targets], expansion: Expansion = "coverage") -> Codebook:
    """The codebook of edits at places on a line, where new entries reach 1."""
    book = Codebook(radius=1.0, expansion=expansion)
    for place, targets in edits:
        book.take(torch.tensor([place, 0.0]), targets)
    return book


def _places(book: Codebook) -> list[float]:
    return [float(key[0]) for key in book.keys]


def test_edits_far_apart_get_entries_of_their_own() -> None:
    book = _book((0.0, LOME), (2.5, SANTIAGO), (5.0, LOME))
    assert _places(book) == [0.0, 2.5, 5.0]
    assert book.radii == [1.0, 1.0, 1.0]
    assert book.targets == [LOME, SANTIAGO, LOME]


def test_an_edit_near_another_target_splits_the_way_between_them() -> None:
    book = _book((0.0, LOME), (1.6, SANTIAGO))
    assert _places(book) == pytest.approx([0.0, 1.6])
    assert book.radii == pytest.approx([0.8 - 1e-5, 0.8], abs=1e-7)
    assert book.targets == [LOME, SANTIAGO]


def test_an_edit_near_the_same_target_widens_its_entry() -> None:
    assert _book((0.0, LOME), (0.5, LOME)).radii == [1.0]
    wider = _book((0.0, LOME), (1.5, LOME))
    assert _places(wider) == [0.0]
    assert wider.radii == [1.5]


def test_the_moving_average_goes_halfway() -> None:
    book = _book((0.0, LOME), (1.5, LOME), expansion="moving_average")
    assert _places(book) == [0.75]
    assert book.radii == [1.5]
    still = _book((0.0, LOME), (0.5, LOME), expansion="moving_average")
    assert (_places(still), still.radii) == ([0.0], [1.0])


def test_what_is_near_is_measured_from_the_nearest_entry_and_its_own_radius() -> None:
    # 3.2 is 1.7 from the second entry, which reaches 1, and 3.2 from the first, which reaches 1.5.
    book = _book((0.0, LOME), (1.5, LOME), (4.9, SANTIAGO), (3.2, SANTIAGO))
    assert _places(book) == pytest.approx([0.0, 4.9])
    assert book.radii == pytest.approx([1.5, 1.7])


def test_another_order_gives_other_radii() -> None:
    one = _book((0.0, LOME), (1.5, LOME), (2.4, SANTIAGO))
    other = _book((2.4, SANTIAGO), (1.5, LOME), (0.0, LOME))
    assert one.radii == pytest.approx([1.2 - 1e-5, 1.2], abs=1e-6)
    # The second was cut short by the first, so that the third is out of its reach.
    assert other.radii == pytest.approx([0.45 - 1e-5, 0.45, 1.0], abs=1e-6)


def test_a_prompt_that_comes_again_with_another_target_takes_over_its_entry() -> None:
    book = _book((0.0, LOME), (0.0, LONGER))
    assert (_places(book), book.radii, book.targets) == ([0.0], [1.0], [LONGER])


def _edited(
    model: LanguageModel, rows: tuple[Example, ...], corpus: Corpus, **settings: object
) -> GraceDelta:
    examples = ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)
    editor = Grace.model_validate({"value_steps": 3, **settings})
    (step,) = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, GraceDelta)
    return step.delta


def test_the_same_edits_in_the_same_order_give_the_same_codebook(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    # So wide that each edit is near those before it.
    settings = {"radius": 5.0}
    one, again = (_edited(neox, examples.rows, corpus, **settings) for _ in range(2))
    assert all(torch.equal(one.tensors()[name], again.tensors()[name]) for name in one.tensors())
    other = _edited(neox, examples.rows[::-1], corpus, **settings)
    assert other.targets == one.targets[::-1]
    assert not torch.allclose(other.radii.flip(0), one.radii, atol=1e-4)


def test_without_an_edit_the_others_are_as_if_it_had_never_been(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    # So narrow that no edit is near another.
    whole = _edited(neox, examples.rows, corpus, radius=1e-3)
    first, _, last = examples.rows
    without = _edited(neox, (first, last), corpus, radius=1e-3, start="warm")
    torch.testing.assert_close(without.keys, whole.keys[[0, 2]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(without.radii, whole.radii[[0, 2]])
    assert without.targets == (whole.targets[0], whole.targets[2])


def test_values_sought_together_are_those_sought_one_by_one(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    settings = {"radius": 1e-3, "start": "warm", "learning_rate": 0.1}
    whole = _edited(neox, examples.rows, corpus, **settings)
    for number, row in enumerate(examples.rows):
        alone = _edited(neox, (row,), corpus, **settings)
        torch.testing.assert_close(alone.values[0], whole.values[number], rtol=1e-2, atol=1e-3)


def test_edits_that_share_an_entry_train_it_one_after_the_other(
    neox: LanguageModel, corpus: Corpus
) -> None:
    rows = tuple(
        Example(prompt=prompt, target=" Lome") for prompt in ("a city is", "a big city is")
    )
    memory = _edited(neox, rows, corpus, radius=1e3, value_steps=40)
    assert memory.targets == (LOME,)
    encoded = [encode_example(neox, row) for row in rows]
    with torch.no_grad():
        before = training_losses(neox.network, LossKind.LIKELIHOOD, encoded, neox.end_id)
        with neox.edited(memory):
            after = training_losses(neox.network, LossKind.LIKELIHOOD, encoded, neox.end_id)
    assert (after < before).all()


@pytest.mark.parametrize(
    ("replacement", "places"),
    [
        ("last", [3]),
        ("prompt", [0, 1, 2, 3]),
        ("before_last", [0, 1, 2]),
        ("all", [0, 1, 2, 3, 4]),
    ],
)
def test_the_value_stands_where_it_should(
    neox: LanguageModel, corpus: Corpus, replacement: Replacement, places: list[int]
) -> None:
    prompt = neox.encode_prompt("The capital city is")[-4:]
    memory = _edited(neox, (Example(prompt="a big town", target=" Lome"),), corpus)
    # A key at zero that reaches everywhere.
    memory = GraceDelta(
        strength=1.0,
        module=memory.module,
        keys=torch.zeros_like(memory.keys),
        values=torch.full_like(memory.values, 7.0),
        radii=torch.tensor([1e6]),
        targets=memory.targets,
        replacement=replacement,
    )
    said: list[torch.Tensor] = []
    ids = torch.tensor([[*prompt, 5]])
    with torch.no_grad(), neox.edited(memory), prompts_end_at(4):
        # Registered last, so that it sees what the memory has said.
        module = neox.network.get_submodule(memory.module)
        handle = module.register_forward_hook(lambda *arguments: said.append(arguments[2]))
        neox.network(input_ids=ids, use_cache=False)
        handle.remove()
    assert (said[0][0] == 7.0).all(dim=1).nonzero().flatten().tolist() == places


@pytest.mark.parametrize("linear", ["in", "out"])
@pytest.mark.parametrize("loss", list(LossKind))
def test_every_loss_falls_at_either_map(
    neox: LanguageModel, corpus: Corpus, loss: LossKind, linear: str
) -> None:
    rows = (Example(prompt="The capital of Togo is", target=" Lome", contrast=" Santiago"),)
    examples = ExampleSet(loss=loss, rows=rows)
    editor = Grace.model_validate({"value_steps": 20, "linear": linear, "learning_rate": 0.3})
    (step,) = editor.edit(neox, examples, Auxiliary(corpus), seed=0)
    encoded = [encode_example(neox, row) for row in rows]
    with torch.no_grad():
        before = training_losses(neox.network, loss, encoded, neox.end_id)
        with neox.edited(step.delta):
            after = training_losses(neox.network, loss, encoded, neox.end_id)
    assert float(after) < float(before)
    assert isinstance(step.delta, GraceDelta)
    assert step.delta.targets == ((" Lome", " Santiago"),)


def test_parts_that_do_not_fit_together_are_refused(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    from tuner.editing.companions import Companions, Surroundings

    memory = _edited(neox, examples.rows, corpus, radius=1e-3)
    short = {**memory.tensors(), "radii": memory.radii[:2]}
    surroundings = Surroundings(Companions(), lambda: neox.tokenizer)
    with pytest.raises(ConfigError, match="one key, one value and one radius"):
        GraceDelta.restore(memory.state, short, surroundings)
