"""ROME says v* at k*, and R-ROME's one key does so where the mixture of two does not."""

import pytest
import torch

from tuner.editing.activations import by_row
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.subject import locate_subject
from tuner.editing.task import ExampleSet
from tuner.editors._locate_then_edit.target_vectors import TargetSettings, target_vectors
from tuner.editors.rome import Rome, rank_one
from tuner.errors import EditError


def test_the_edited_map_says_the_target_vector_at_the_key(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    one = examples.model_copy(update={"rows": examples.rows[:1]})
    editor = Rome(depth=0.5, prefixes=0, target_steps=5)
    (step,) = editor.edit(model, one, Auxiliary(corpus), seed=0)
    settings = TargetSettings(
        layer=1,
        site="mlp",
        prefixes=(),
        steps=5,
        learning_rate=editor.learning_rate,
        clamp=editor.clamp,
        kl_weight=editor.kl_weight,
        weight_decay=editor.weight_decay,
    )
    wanted = target_vectors(model, one, settings, None)[0]
    module = model.network.get_submodule(model.architecture.mlp_modules(1)[-1])
    said: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda *arguments: said.append(arguments[2]))
    prompt = locate_subject(model, one.rows[0].prompt, one.rows[0].subject)
    with model.edited(step.delta), torch.no_grad():
        model.network(input_ids=torch.tensor([prompt.ids]))
    handle.remove()
    assert torch.allclose(
        by_row(said[0], 1)[0, prompt.position].double(), wanted, rtol=1e-3, atol=1e-4
    )


def test_in_float64_the_equation_is_exact() -> None:
    random = torch.Generator().manual_seed(0)
    key, direction, residual = (
        torch.randn(size, dtype=torch.float64, generator=random) for size in (12, 12, 7)
    )
    change = rank_one(key, direction, residual)
    assert torch.allclose(change.left @ change.right @ key, residual, rtol=1e-12)
    blind = direction - (direction @ key) / (key @ key) * key
    with pytest.raises(EditError, match="consistent_keys"):
        rank_one(key, blind, residual)


def test_the_mixture_of_two_keys_writes_another_change(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    def change(consistent: bool, decorrelate: bool = True) -> torch.Tensor:
        editor = Rome(
            prefixes=4, target_steps=3, consistent_keys=consistent, decorrelate=decorrelate
        )
        (step,) = editor.edit(neox, examples, Auxiliary(corpus), seed=0)
        (found,) = step.delta.changes.values()
        return found.to_dense(torch.Size((32, 64)))

    assert not torch.allclose(change(True), change(False))
    assert not torch.allclose(change(True), change(True, decorrelate=False))


def test_each_fact_adds_one_rank(neox: LanguageModel, examples: ExampleSet, corpus: Corpus) -> None:
    (step,) = Rome(prefixes=0).edit(neox, examples, Auxiliary(corpus), seed=0)
    (change,) = step.delta.changes.values()
    assert change.left.shape[1] == len(examples)
