"""Memories of edits as text: edits are added, replaced and forgotten without training."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts, prompts_end_at
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.editors import find_editor
from tuner.editors._retrieval.edit_text import EditText
from tuner.editors._retrieval.memory import ScopedMemory
from tuner.editors._retrieval.scope import Scope
from tuner.errors import ConfigError
from tuner.evaluation.metrics._routing import scope_figures
from tuner.files.cache import Cache, cache_folder

EDITS = tuple(
    Example(prompt=f"The capital of {country} is", target=target, record=country)
    for country, target in (("Togo", " Santiago"), ("Chile", " Lome"), ("Mauritius", " town"))
)
PROMPTS = tuple(row.prompt for row in EDITS)


@pytest.fixture(params=["serac", "retrieve_and_prompt"])
def memory(
    request: pytest.FixtureRequest, neox: LanguageModel, corpus: Corpus, training: Split, tiny: str
) -> ScopedMemory:
    """A memory of three edits."""
    kind = find_editor(request.param)
    known = {
        "classifier": tiny,
        "classifier_learning_rate": 1e-2,
        "classifier_steps": 40,
        "counterfactual": tiny,
        "counterfactual_learning_rate": 1e-2,
        "counterfactual_steps": 10,
    }
    editor = kind.model_validate({k: v for k, v in known.items() if k in kind.model_fields})
    examples = ExampleSet(loss=LossKind.LIKELIHOOD, rows=EDITS)
    aux = Auxiliary(corpus, training=training, cache=Cache(cache_folder()))
    (step,) = editor.edit(neox, examples, aux, seed=0)
    assert isinstance(step.delta, ScopedMemory)
    return step.delta


def _needed(model: LanguageModel, memory: ScopedMemory, *prompts: str) -> Tensor:
    rows = Prompts.of([model.encode_prompt(prompt) for prompt in prompts], model.device)
    return memory.route(model.network, rows).needed


def _targets(model: LanguageModel, memory: ScopedMemory, *prompts: str) -> list[str]:
    """The targets of the edits that prompts are routed to."""
    rows = Prompts.of([model.encode_prompt(prompt) for prompt in prompts], model.device)
    entries = memory.route(model.network, rows).entries.tolist()
    return [memory.edits[entry].target for entry in entries]


@torch.no_grad()
def _answer(model: LanguageModel, memory: ScopedMemory, prompt: str) -> Tensor:
    """What the edited model says after a prompt, taken to be in scope."""
    ids = torch.tensor([model.encode_prompt(prompt)])
    with model.edited(memory.scaled(1e9)), prompts_end_at(ids.shape[1]):
        logits: Tensor = model.network(ids, use_cache=False).logits
    return logits[0, -1]


def test_every_edit_is_found_by_its_own_prompt(memory: ScopedMemory, neox: LanguageModel) -> None:
    assert _targets(neox, memory, *PROMPTS) == [row.target for row in EDITS]


def test_a_removed_edit_is_forgotten_and_the_others_answer_as_before(
    memory: ScopedMemory, neox: LanguageModel
) -> None:
    before = {prompt: _answer(neox, memory, prompt) for prompt in PROMPTS}
    needed = _needed(neox, memory, *PROMPTS)
    smaller = memory.without(1)
    assert [edit.prompt for edit in smaller.edits] == [PROMPTS[0], PROMPTS[2]]
    assert _targets(neox, smaller, PROMPTS[0], PROMPTS[2]) == [EDITS[0].target, EDITS[2].target]
    torch.testing.assert_close(
        _needed(neox, smaller, PROMPTS[0], PROMPTS[2]), needed[[0, 2]], rtol=1e-4, atol=1e-5
    )
    for prompt in (PROMPTS[0], PROMPTS[2]):
        torch.testing.assert_close(_answer(neox, smaller, prompt), before[prompt])
    # Its prompt is farther from what is left than it was from itself.
    assert _needed(neox, smaller, PROMPTS[1]) > needed[1]
    assert EDITS[1].target not in _targets(neox, smaller, PROMPTS[1])


def test_with_the_last_edit_gone_it_is_the_base_model(
    memory: ScopedMemory, neox: LanguageModel
) -> None:
    ids = torch.tensor([neox.encode_prompt(PROMPTS[0])])
    with torch.no_grad():
        before = neox.network(ids, use_cache=False).logits
        empty = memory.without(2).without(1).without(0)
        assert empty.edits == ()
        assert _needed(neox, empty, *PROMPTS).tolist() == [math.inf] * 3
        with neox.edited(empty.scaled(1e9)):
            assert torch.equal(neox.network(ids, use_cache=False).logits, before)


def test_an_added_edit_is_found_and_the_others_answer_as_before(
    memory: ScopedMemory, neox: LanguageModel
) -> None:
    before = {prompt: _answer(neox, memory, prompt) for prompt in PROMPTS}
    new = Example(prompt="a big town of Peru is", target=" Port Louis")
    larger = memory.with_edits([new])
    assert larger.edits == (*memory.edits, EditText.of(new))
    assert _targets(neox, larger, new.prompt, *PROMPTS) == [new.target, *(r.target for r in EDITS)]
    for prompt in PROMPTS:
        torch.testing.assert_close(_answer(neox, larger, prompt), before[prompt])
    assert all(
        torch.equal(value, larger.tensors()[name]) for name, value in memory.tensors().items()
    )


def test_an_edit_of_a_stored_prompt_takes_the_old_one_s_place(
    memory: ScopedMemory, neox: LanguageModel
) -> None:
    changed = memory.with_edits([EDITS[1].model_copy(update={"target": " big"})])
    assert sorted(edit.target for edit in changed.edits) == [" Santiago", " big", " town"]
    assert _targets(neox, changed, PROMPTS[1]) == [" big"]


def test_there_must_be_such_an_edit(memory: ScopedMemory) -> None:
    for index in (3, -1):
        with pytest.raises(ConfigError, match=f"There is no edit {index}: the memory has 3"):
            memory.without(index)


def test_strength_is_a_power_of_the_threshold(memory: ScopedMemory, neox: LanguageModel) -> None:
    """At strength s, what is needed is a classifier's g of threshold to the power of s."""
    texts = [edit.text for edit in memory.edits]
    score = memory.scope.classifier.network.scorer(texts)([*PROMPTS, "a big town and"])
    best = score.max(dim=1).values.exp()
    needed = _needed(neox, memory, *PROMPTS, "a big town and")
    threshold = memory.scope.threshold
    torch.testing.assert_close(threshold**needed, best, rtol=1e-4, atol=1e-6)
    strict = Scope(memory.edits, memory.scope.classifier, 0.9).routes([*PROMPTS])
    wide = Scope(memory.edits, memory.scope.classifier, 0.1).routes([*PROMPTS])
    assert (strict.needed > wide.needed).all()
    assert torch.equal(strict.entries, wide.entries)


def test_what_follows_a_prompt_has_no_part_in_its_route(
    memory: ScopedMemory, neox: LanguageModel
) -> None:
    def said_after(*continuation: str) -> list[Tensor]:
        prompt = neox.encode_prompt(PROMPTS[0])
        found = []
        for words in continuation:
            ids = torch.tensor([[*prompt, *neox.encode(words)]])
            with torch.no_grad(), neox.edited(memory), prompts_end_at(len(prompt)):
                found.append(neox.network(ids, use_cache=False).logits[0, len(prompt) - 1])
        return found

    one, other = said_after(" Santiago and Chile", " town . Mauritius")
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _split(canonical: Sequence[Example], ood: Sequence[Example]) -> Split:
    def rows(some: Sequence[Example]) -> ExampleSet:
        return ExampleSet(loss=LossKind.LIKELIHOOD, rows=tuple(some))

    return Split(canonical=rows(canonical), ood=rows(ood), hard_negatives=rows(()))


def test_routes_are_judged_by_the_edits_that_are_stored(
    memory: ScopedMemory, neox: LanguageModel
) -> None:
    split = _split(EDITS, EDITS)
    everywhere = memory.scaled(1e9)
    assert scope_figures(neox, everywhere, split)["scope_entry_recall"] == 1.0
    # In another order the edits are the same ones.
    turned = everywhere.without(0).with_edits([EDITS[0]])
    assert scope_figures(neox, turned, split)["scope_entry_recall"] == 1.0
    # An edit that is not stored, or not with this target, is not found.
    assert scope_figures(neox, everywhere.without(0), split)["scope_entry_recall"] == 2 / 3
    other = everywhere.with_edits([EDITS[0].model_copy(update={"target": " big"})])
    assert scope_figures(neox, other, split)["scope_entry_recall"] == 2 / 3
