"""Sense finetuning: only the chosen senses move, every loss falls, other families are refused."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.command_line import Run
from tests.support.sense_edits import random_senses
from tuner.backpack import BackpackForCausalLM
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus, GeneralText
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_example, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, LossKind, Task
from tuner.editors._training.loop import kl_from_base
from tuner.editors.senses.editor import Senses
from tuner.editors.senses.selection import SenseSelection, background_of
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Budget
from tuner.files.cache import Cache
from tuner.trial.run import run_trial


@pytest.fixture
def contrasts(examples: ExampleSet) -> ExampleSet:
    texts = (" a big town", " Port Louis", " Lome")
    rows = [
        row.model_copy(update={"contrast": contrast})
        for row, contrast in zip(examples.rows, texts, strict=True)
    ]
    return ExampleSet(loss=LossKind.PREFER, rows=tuple(rows))


def _last(
    editor: Senses,
    model: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
    cache: Cache | None = None,
) -> SenseDelta:
    *_, step = editor.edit(model, examples, Auxiliary(corpus, cache=cache), seed=0)
    assert isinstance(step.delta, SenseDelta)
    return step.delta


@torch.no_grad()
def _loss(model: LanguageModel, examples: ExampleSet) -> float:
    rows = [encode_example(model, row) for row in examples.rows]
    return float(training_losses(model.network, examples.loss, rows, model.end_id).mean())


def _table(model: LanguageModel) -> Tensor:
    table: Tensor = model.network.backpack.sense_table()
    return table


@pytest.mark.parametrize("selection", list(SenseSelection))
@pytest.mark.parametrize("loss", list(LossKind))
def test_the_loss_falls_and_only_the_chosen_senses_change(
    loss: LossKind,
    selection: SenseSelection,
    backpack: LanguageModel,
    contrasts: ExampleSet,
    corpus: Corpus,
) -> None:
    examples = ExampleSet(loss=loss, rows=contrasts.rows)
    editor = Senses(
        learning_rate=0.03, epochs=4, senses_per_example=3, selection=selection, kl_weight=0.1
    )
    before, base = _loss(backpack, examples), _table(backpack)
    delta = _last(editor, backpack, examples, corpus)
    pairs = [tuple(pair) for pair in delta.pairs.tolist()]
    assert 3 <= len(pairs) == len(set(pairs)) <= 9
    assert (delta.vectors != 0).any(dim=1).all(), "each chosen sense must have moved"
    with backpack.edited(delta):
        assert _loss(backpack, examples) < before
        changed = (_table(backpack) != base).any(dim=-1).nonzero()
    assert [tuple(pair) for pair in changed.tolist()] == sorted(pairs)
    backpack.check_unchanged()


def test_the_same_senses_are_trained_in_every_epoch(
    backpack: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = Senses(learning_rate=0.03, epochs=3)
    steps = list(editor.edit(backpack, examples, Auxiliary(corpus), seed=0))
    assert len(steps) == editor.step_count == 3
    first, second, third = (step.delta for step in steps)
    # What was yielded stays as it was when training goes on.
    assert torch.equal(first.pairs, third.pairs)
    assert not torch.equal(first.vectors, second.vectors)
    (alone,) = Senses(learning_rate=0.03, epochs=1).edit(
        backpack, examples, Auxiliary(corpus), seed=0
    )
    assert torch.equal(alone.delta.vectors, first.vectors)


def test_it_is_the_same_with_and_without_a_cache(
    backpack: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    editor, cache = Senses(learning_rate=0.03, epochs=2), Cache(tmp_path)
    plain = _last(editor, backpack, examples, corpus)
    for _ in range(2):
        kept = _last(editor, backpack, examples, corpus, cache)
        assert torch.equal(kept.pairs, plain.pairs)
        assert torch.equal(kept.vectors, plain.vectors)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_batches_add_up(backpack: LanguageModel, examples: ExampleSet, corpus: Corpus) -> None:
    one = Senses(learning_rate=0.03, epochs=2, background_weight=0.0)
    editor = one.model_copy(update={"batches": 3})
    steps = list(editor.edit(backpack, examples, Auxiliary(corpus), seed=5))
    assert len(steps) == editor.step_count == 3
    total, current = None, backpack
    for number, row in enumerate(examples.rows):
        single = ExampleSet(loss=examples.loss, rows=(row,))
        aux = Auxiliary(corpus, origin=backpack)
        *_, step = one.edit(current, single, aux, seed=5 + number)
        total = step.delta if total is None else total.plus(step.delta)
        current = backpack.after(total)
        assert torch.equal(steps[number].delta.pairs, total.pairs)
        assert torch.equal(steps[number].delta.vectors, total.vectors)
    with backpack.edited(steps[-1].delta):
        edited = _loss(backpack, examples)
    assert edited < _loss(backpack, examples)
    assert edited == pytest.approx(_loss(current, examples), rel=1e-6)


@pytest.mark.parametrize("selection", list(SenseSelection))
def test_the_use_by_general_text_is_asked_once_for_all_batches(
    selection: SenseSelection,
    backpack: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    editor = Senses(
        learning_rate=0.03, epochs=1, selection=selection, background_weight=1.0, batches=3
    )
    _last(editor, backpack, examples, corpus, Cache(tmp_path))
    assert len(list(tmp_path.glob("sense_background/*"))) == 1


def test_an_edit_of_senses_leaves_the_attention_of_general_text_as_it_is(
    backpack: LanguageModel, corpus: Corpus
) -> None:
    # That is why one background serves all batches.
    tables = []
    for model in (backpack, backpack.after(random_senses(backpack, [62, 75, 90]))):
        assert isinstance(model.network, BackpackForCausalLM)
        tables.append(background_of(model.network, model, corpus, SenseSelection.ATTENTION, None))
    assert torch.equal(*tables)


def test_training_starts_from_a_model_s_own_offsets(
    backpack: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = Senses(learning_rate=0.02, epochs=3, background_weight=0.0, kl_weight=0.1)
    own = random_senses(backpack, backpack.encode("The capital of is"), size=0.5)
    edited = backpack.after(own)
    settings, bits = edited.network.config.to_dict(), edited.network.state_dict()
    before = _loss(edited, examples)
    aux = Auxiliary(corpus)
    first, *_, last = editor.edit(edited, examples, aux, seed=0)
    # Three examples are one batch, so the first epoch's loss is read before any step.
    assert first.training_loss == pytest.approx(before, rel=1e-5)
    assert before != pytest.approx(_loss(backpack, examples), rel=1e-3)
    with edited.edited(last.delta):
        assert _loss(edited, examples) < before
    # What was learned is apart from what was there: together they make the edited model.
    with backpack.edited(own.plus(last.delta)):
        together = _loss(backpack, examples)
    with edited.edited(last.delta):
        assert _loss(edited, examples) == pytest.approx(together, rel=1e-5)
    assert edited.network.config.to_dict() == settings
    now = edited.network.state_dict()
    assert all(torch.equal(now[name], bit) for name, bit in bits.items())
    edited.check_unchanged()


def test_the_kl_term_holds_the_edit_back(
    backpack: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    # Text about the examples' own words, so that their senses matter to it.
    ids = torch.tensor(backpack.encode("The capital of Togo is Lome and a big town"))
    text = Corpus("near", ids[:8].repeat(8, 1))

    def divergence(weight: float) -> float:
        editor = Senses(learning_rate=0.03, epochs=6, kl_weight=weight, background_weight=0.0)
        delta = _last(editor, backpack, examples, text)
        with torch.no_grad():
            return float(kl_from_base(backpack.after(delta).network, backpack, text.blocks))

    assert divergence(10.0) < 0.5 * divergence(0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_trained_in_single_precision(
    dtype: torch.dtype, backpack: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    whole = backpack.twin(own=dict(backpack.network.named_parameters()))
    model = LanguageModel(whole.to(dtype), backpack.tokenizer, id="half")
    before = _loss(model, examples)
    delta = _last(Senses(learning_rate=0.03, epochs=4), model, examples, corpus)
    assert delta.vectors.dtype is torch.float32
    with model.edited(delta):
        assert _loss(model, examples) < before
    single = LanguageModel(
        model.twin(own=dict(model.network.named_parameters())).float(), model.tokenizer, id="x"
    )
    # All senses, so that rounding in their choice plays no part.
    editor = Senses(learning_rate=0.03, epochs=4, senses_per_example=1000, kl_weight=0)
    found, expected = (_last(editor, each, examples, corpus) for each in (model, single))
    assert torch.equal(found.pairs, expected.pairs)
    torch.testing.assert_close(found.vectors, expected.vectors)
    model.check_unchanged()


def test_shares_and_ranks_of_weights_are_refused() -> None:
    for given in ({"keep_share": 0.5}, {"truncated_rank": 2}):
        with pytest.raises(ValidationError, match="only changes of weights have a share"):
            Senses.model_validate({"learning_rate": 0.03, **given})


def test_a_model_without_senses_is_refused(
    neox: LanguageModel, task: Task, general: GeneralText, examples: ExampleSet, corpus: Corpus
) -> None:
    editor = Senses(learning_rate=0.03, epochs=1)
    says = "Only a Backpack has senses, and tiny-gpt_neox is a gpt_neox"
    with pytest.raises(ConfigError, match=says):
        run_trial(neox, task, editor, Budget(epsilons=(0.1,)), general=general, seed=0)
    with pytest.raises(ConfigError, match=says):
        _last(editor, neox, examples, corpus)


def test_the_command_says_so_before_it_reads_any_text(run: Run, tmp_path: Path) -> None:
    general = tmp_path / "general.txt"
    general.write_text("Far too little.")
    code, _, err = run(
        "edit", "--task", "country_capital", "--editor", "senses", "--set", "learning_rate=0.01",
        "--general", str(general), "--out", str(tmp_path / "edit"),
    )  # fmt: skip
    assert code == 2
    assert "Only a Backpack has senses" in err
    assert not (tmp_path / "edit").exists()
