"""A scope classifier learns what is out of scope, once for all who ask for the same."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.encoder import load_encoder
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, Split
from tuner.editors._retrieval.classifier import ScopeClassifier, ScopeForm
from tuner.editors._retrieval.classifier_training import Negatives, train_scope_classifier
from tuner.editors._retrieval.edit_text import EditText
from tuner.editors._retrieval.memory import ScopedMemory
from tuner.editors._training.amortised import Schedule, train
from tuner.editors._training.training_edits import training_edits
from tuner.editors.retrieve_and_prompt.editor import RetrieveAndPrompt
from tuner.editors.serac.editor import Serac
from tuner.errors import ConfigError, EditError
from tuner.files.cache import Cache

SCHEDULE = Schedule(
    learning_rate=1e-2,
    steps=40,
    warmup=0,
    edits_per_step=4,
    check_every=10,
    patience=4,
    gradient_clip=100.0,
    held_out=0.0,
    seed=0,
)
EMBEDDINGS = ScopeForm(compares="embeddings", pooling="auto", most_tokens=32)
TEXTS = ScopeForm(compares="texts", pooling="auto", most_tokens=48)
HARD = Negatives(hard_share=1.0, all_pairs=False)


def _trained(
    tiny: str,
    split: Split | None,
    form: ScopeForm = EMBEDDINGS,
    schedule: Schedule = SCHEDULE,
    negatives: Negatives = HARD,
    cache: Cache | None = None,
) -> ScopeClassifier:
    return train_scope_classifier(load_encoder(tiny), form, split, negatives, schedule, cache)


def _same(one: ScopeClassifier, other: ScopeClassifier) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


@pytest.mark.parametrize("form", [EMBEDDINGS, TEXTS], ids=["embeddings", "texts"])
def test_hard_negatives_are_learned(form: ScopeForm, tiny: str, training: Split) -> None:
    network = _trained(tiny, training, form).network
    for edit in training_edits(training):
        score = network.scorer([EditText.of(edit.edit).text])
        inside = score([row.prompt for row in edit.inside]).min()
        outside = score([row.prompt for row in edit.out_of_scope]).max()
        assert inside > math.log(0.5) > outside


def test_prompts_of_other_edits_are_learned(tiny: str, training: Split) -> None:
    edits = training_edits(training)
    texts = [EditText.of(edit.edit).text for edit in edits]
    prompts = [row.prompt for edit in edits for row in edit.in_scope]
    wanted = [place for place, edit in enumerate(edits) for _ in edit.in_scope]
    easy = Negatives(hard_share=0.0, all_pairs=True)
    for_long = replace(SCHEDULE, steps=100)
    found = _trained(tiny, training, schedule=for_long, negatives=easy).network.scorer(texts)
    right = found(prompts).argmax(dim=1) == torch.tensor(wanted)
    assert right.double().mean() >= 0.9


@pytest.mark.parametrize("form", [EMBEDDINGS, TEXTS], ids=["embeddings", "texts"])
def test_same_seed_same_weights(form: ScopeForm, tiny: str, training: Split) -> None:
    few = replace(SCHEDULE, steps=3)
    first = _trained(tiny, training, form, few)
    torch.manual_seed(99)
    assert _same(first, _trained(tiny, training, form, few))
    assert not _same(first, _trained(tiny, training, form, replace(few, seed=1)))


def test_what_is_trained_depends_on_is_in_the_cache_s_key(
    tiny: str, training: Split, tmp_path: Path
) -> None:
    cache, few = Cache(tmp_path), replace(SCHEDULE, steps=2)
    first = _trained(tiny, training, schedule=few, cache=cache)
    assert _same(first, _trained(tiny, training, schedule=few, cache=cache))
    rows = training.canonical.rows[:-1]
    fewer = training.model_copy(
        update={"canonical": training.canonical.model_copy(update={"rows": rows})}
    )
    _trained(tiny, fewer, schedule=few, cache=cache)
    _trained(tiny, training, TEXTS, few, cache=cache)
    _trained(tiny, training, schedule=replace(few, learning_rate=1e-3), cache=cache)
    _trained(tiny, training, schedule=few, negatives=replace(HARD, hard_share=0.5), cache=cache)
    assert len(list(tmp_path.glob("scope/*.safetensors"))) == 5


def test_trials_with_other_thresholds_train_nothing(
    tiny: str,
    neox: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
    training: Split,
    tmp_path: Path,
) -> None:
    aux = Auxiliary(corpus, training=training, cache=Cache(tmp_path))
    serac = Serac(classifier=tiny, counterfactual=tiny, classifier_steps=3, counterfactual_steps=3)

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.safetensors")}

    (first,) = serac.edit(neox, examples, aux, seed=0)
    written = kept()
    assert len(written) == 2
    other = serac.model_copy(update={"threshold": 0.9})
    (second,) = other.edit(neox, examples, aux, seed=7)
    # Retrieve and prompt has the same classifier.
    alike = RetrieveAndPrompt(classifier=tiny, classifier_steps=3, threshold=0.1)
    (third,) = alike.edit(neox, examples, aux, seed=0)
    assert kept() == written
    ours, theirs = first.delta, second.delta
    assert isinstance(ours, ScopedMemory)
    assert isinstance(theirs, ScopedMemory)
    assert isinstance(third.delta, ScopedMemory)
    assert all(torch.equal(value, theirs.tensors()[name]) for name, value in ours.tensors().items())
    assert (ours.scope.threshold, theirs.scope.threshold) == (0.5, 0.9)
    assert third.delta.scope.classifier.weights.keys() == ours.scope.classifier.weights.keys()


def test_without_other_edits_nothing_is_trained(
    tiny: str, training: Split, neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    with pytest.raises(ConfigError, match="learns from other edits"):
        _trained(tiny, None)
    one = training.canonical.model_copy(update={"rows": training.canonical.rows[:1]})
    with pytest.raises(ConfigError, match="two edits or more"):
        _trained(tiny, training.model_copy(update={"canonical": one}))
    with pytest.raises(ConfigError, match="learns from other edits"):
        next(Serac(classifier=tiny).edit(neox, examples, Auxiliary(corpus), seed=0))


def test_a_training_that_diverges_is_an_edit_error() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(EditError, match="lower the learning rate"):
        train({"one": weight}, lambda: (weight / 0).sum(), None, SCHEDULE)


def test_training_ends_where_the_held_out_loss_was_least() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    losses = iter([3.0, 1.0, 2.0, 2.0, 5.0, 0.0])
    seen: list[float] = []

    def held_out() -> float:
        seen.append(weight.item())
        return next(losses)

    schedule = replace(SCHEDULE, steps=100, check_every=5, patience=3, learning_rate=0.1)
    train({"one": weight}, lambda: (weight - 10).square().sum(), held_out, schedule)
    # Three looks without a gain end it, and the best of all is what stays.
    assert len(seen) == 5
    assert weight.item() == seen[1]
    assert 0 < seen[0] < seen[1] < seen[2]
