"""Full fine-tuning: which weights are free, and how rows count."""

from pathlib import Path

import pytest
import torch

from tests.conftest import make_tiny_model
from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.delta import WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_example
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.editors.full_finetuning import FullFinetuning
from tuner.editors.grace.editor import Grace
from tuner.editors.memit import Memit
from tuner.editors.rome import Rome
from tuner.errors import ConfigError, EditError
from tuner.search.dimensions import extremes
from tuner.search.space_file import load_space


def _last(
    editor: FullFinetuning, model: LanguageModel, examples: ExampleSet, aux: Auxiliary
) -> WeightDelta:
    *_, step = editor.edit(model, examples, aux, seed=0)
    assert isinstance(step.delta, WeightDelta)
    return step.delta


def test_a_band_frees_all_weights_of_its_layers_and_no_other(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = FullFinetuning(learning_rate=1e-3, epochs=1, center=1.0, width=0.01)
    delta = _last(editor, model, examples, Auxiliary(corpus))
    path = f"{model.architecture.layer_module(2)}."
    names = {name for name, _ in model.network.named_parameters() if name.startswith(path)}
    assert delta.changes.keys() == names
    # A key's bias moves no attention, and the last layer's may stay for want of a gradient.
    moved = {name for name, tensor in delta.tensors().items() if tensor.abs().max() > 0}
    assert len(moved) > len(names) / 2
    model.check_unchanged()


def test_a_band_does_what_it_does_within_all_weights(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    # One step of Adam treats each weight alone: the band's change is a part of the whole.
    whole = FullFinetuning(learning_rate=1e-3, epochs=1, kl_weight=0)
    band = FullFinetuning(learning_rate=1e-3, epochs=1, kl_weight=0, center=0.0, width=0.01)
    everything = _last(whole, neox, examples, Auxiliary(corpus)).tensors()
    part = _last(band, neox, examples, Auxiliary(corpus)).tensors()
    assert part.keys() < everything.keys()
    for name, tensor in part.items():
        torch.testing.assert_close(tensor, everything[name])


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"width": 0.0, "center": 0.5}, [1]),
        ({"width": 0.0, "center": 1.0}, [2]),
        ({"first_layer": 2}, [2]),
        ({"last_layer": 0}, [0]),
        ({"first_layer": 1, "last_layer": 2}, [1, 2]),
        ({"first_layer": 0, "width": 1.0}, [0]),
    ],
)
def test_bands_of_one_layer_and_bands_by_number(
    settings: dict[str, float],
    layers: list[int],
    neox: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
) -> None:
    editor = FullFinetuning.model_validate({"learning_rate": 1e-3, "epochs": 1, **settings})
    delta = _last(editor, neox, examples, Auxiliary(corpus))
    assert sorted({int(name.split(".")[2]) for name in delta.changes}) == layers


def test_layers_that_are_not_there_are_refused(neox: LanguageModel) -> None:
    with pytest.raises(ValueError, match="first_layer <= last_layer must hold, but got 2 and 1"):
        FullFinetuning(learning_rate=1e-3, first_layer=2, last_layer=1)
    for editor in (
        FullFinetuning(learning_rate=1e-3, first_layer=3),
        FullFinetuning(learning_rate=1e-3, first_layer=1, last_layer=3),
        Memit(last_layer=3),
        Rome(layer=3),
        Grace(layer=3),
    ):
        with pytest.raises(ConfigError, match=r"has 3 \(0 to 2\), but got 3"):
            editor.check_model(neox, Companions())
    Rome(layer=2).check_model(neox, Companions())
    assert Rome(layer=2, depth=0.0).layer_of(neox) == 2
    assert Memit(first_layer=0, last_layer=1).layers(3) == [0, 1]


def test_the_space_of_one_layer_interpolation_changes_one_layer(neox: LanguageModel) -> None:
    (branch,) = load_space("one_layer").branches
    for end in (0, 1):
        values = {
            key: list(extremes(range_).values())[-end] for key, range_ in branch.search.items()
        }
        editor = branch.build(values)
        assert isinstance(editor, FullFinetuning)
        assert len(editor.layers(6)) == 1


def test_every_weight_is_free_without_a_width(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    delta = _last(FullFinetuning(learning_rate=1e-3, epochs=1), model, examples, Auxiliary(corpus))
    assert delta.changes.keys() == dict(model.network.named_parameters()).keys()


def test_a_mean_over_tokens_is_the_loss_of_all_tokens_over_their_number(
    neox: LanguageModel, corpus: Corpus
) -> None:
    rows = (
        Example(prompt="The capital of Togo is", target=" Lome"),
        Example(prompt="A big town is", target=" Port Louis of Mauritius"),
        Example(prompt="The city is", target=" Santiago and Chile"),
    )
    edits = ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)
    # Momentum off and one step: Adam's step is the gradient's sign, so look at where signs differ.
    name = f"{neox.architecture.mlp_modules(1)[-1]}.weight"
    twin = neox.twin(own=[name])
    weight = twin.get_parameter(name).requires_grad_(True)
    learned = []
    for row in rows:
        target = encode_example(neox, row).target
        logits = twin(input_ids=torch.tensor([target.ids])).logits[0].log_softmax(-1)
        places = range(target.start, len(target.ids))
        learned.append(-torch.stack([logits[place - 1, target.ids[place]] for place in places]))
    means = {
        "tokens": torch.cat(learned).mean(),
        "examples": torch.stack([losses.mean() for losses in learned]).mean(),
    }
    assert len({len(losses) for losses in learned}) > 1
    for how, mean in means.items():
        (gradient,) = torch.autograd.grad(mean, weight, retain_graph=True)
        for micro in (None, 1, 2):
            editor = FullFinetuning.model_validate(
                {
                    "learning_rate": 1e-3,
                    "epochs": 1,
                    "kl_weight": 0,
                    "mean_over": how,
                    "micro_batch_size": micro,
                }
            )
            change = _last(editor, neox, edits, Auxiliary(corpus)).tensors()[f"{name}::values"]
            clear = gradient.abs() > 1e-4
            assert torch.equal(change[clear].sign(), -gradient[clear].sign())
        others = [m for other, m in means.items() if other != how]
        (other_gradient,) = torch.autograd.grad(others[0], weight, retain_graph=True)
        assert not torch.equal(other_gradient[clear].sign(), gradient[clear].sign())


MASS_EDIT = """
editor: lora
fixed:
  rank: 32
  lora_alpha: 64
  maps: all
  width: 1.0
  epochs: 6
  batch_size: 32
  kl_weight: 0
  betas: [0.9, 0.999]
  mean_over: tokens
  prefixes: 15
  facts: 20
search:
  learning_rate: {type: categorical, choices: [7.0e-5, 7.1e-5]}
"""
SINGLE_EDIT = """
editor: full_finetuning
fixed:
  learning_rate: 2.2e-5
  schedule: constant
  weight_decay: 0.01
  epochs: 50
  batch_size: 26
  kl_weight: 0
  betas: [0.9, 0.999]
  mean_over: tokens
  prefixes: 10
  facts: 15
search:
  nearest_facts: {type: categorical, choices: [true, false]}
"""
# Layers 3 to 5 of GPT-J's 28.
BAND = """
editor: full_finetuning
fixed:
  center: 0.15
  width: 0.07
  epochs: 6
  batch_size: 32
  kl_weight: 0
  prefixes: 15
  facts: 20
search:
  learning_rate: {type: categorical, choices: [7.0e-5, 7.1e-5]}
"""
LOCFT = """
editor: locft_bf
fixed:
  learning_rate: 5.0e-4
  epochs: 25
  batch_size: 100
  stop_below: 1.0e-2
search:
  depth: {type: categorical, choices: [0.7097, 0.222]}
"""


@pytest.mark.parametrize(
    ("family", "settings"),
    [("gptj", MASS_EDIT), ("gpt2", SINGLE_EDIT), ("gptj", BAND), ("llama", LOCFT)],
)
def test_published_settings_load_and_run(
    family: str,
    settings: str,
    tokenizer: object,
    examples: ExampleSet,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    model = make_tiny_model(family, tokenizer)
    path = tmp_path / "published.yaml"
    path.write_text(settings)
    space = load_space(path)
    (branch,) = space.branches
    editor = branch.build(
        {key: next(iter(extremes(range_).values())) for key, range_ in branch.search.items()}
    )
    pool = tuple(
        Example(prompt=f"The {noun} of {place} is", target=" big")
        for noun in ("town", "city")
        for place in ("Chile", "Togo", "Mauritius")
    )
    aux = Auxiliary(corpus, facts=ExampleSet(loss=LossKind.LIKELIHOOD, rows=pool))
    steps = editor.edit(model, examples, aux, seed=42)
    losses = [step.training_loss for step in steps]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0]
    assert editor.step_count >= len(losses)


def test_a_published_batch_that_never_fills_is_an_edit_error(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = FullFinetuning(learning_rate=1e-3, epochs=1, batch_size=4, paper_exact=True)
    with pytest.raises(EditError, match="3 rows do not fill one of 4"):
        list(editor.edit(neox, examples, Auxiliary(corpus), seed=0))
