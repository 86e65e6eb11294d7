"""One trial: three rules, every budget, nothing left behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import torch
from pydantic import AllowInfNan

from tuner.editing.corpus import FileDocuments, GeneralText, TextPart
from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, GenerationPrompt, Split, SuccessCriterion, Task
from tuner.editors import find_editor
from tuner.errors import EditError, TaskError
from tuner.evaluation.deviation.budget import Budget
from tuner.files.cache import Cache
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import EpochRecord, Outcome, Rule, SplitName, TrialRecord
from tuner.trial.result import TrialResult
from tuner.trial.run import run_editor


@pytest.fixture
def evaluator(neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path) -> Evaluator:
    budget = Budget(epsilons=(1e-1, 1e-2))
    return Evaluator(neox, task, budget, general, cache=Cache(tmp_path / "cache"))


class Scripted(Editor):
    """Yields a given direction at given strengths, epoch by epoch."""

    strengths: tuple[Annotated[float, AllowInfNan(True)], ...]
    epochs: int = 3
    breaks_at: int | None = None

    @property
    def steps_per_batch(self) -> int:
        return self.epochs

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        name = f"{model.architecture.mlp_modules(1)[0]}.weight"
        shape = model.network.get_parameter(name).shape
        direction = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for epoch, strength in enumerate(self.strengths, start=1):
            if epoch == self.breaks_at:
                raise torch.OutOfMemoryError("out of memory by script")
            yield EpochEdit(WeightDelta({name: Dense(strength * direction)}))


class Greedy(Editor):
    """Asks for more memory than any machine has."""

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        torch.empty(2**60, dtype=torch.uint8)
        yield EpochEdit(WeightDelta({}))


def test_a_trial_that_asks_for_too_much_memory_fails_in_words(evaluator: Evaluator) -> None:
    record = run_editor(evaluator, Greedy(), seed=0).record
    assert record.outcome is Outcome.FAILED
    assert record.failure is not None
    assert record.failure.startswith("Memory ran out: ")
    evaluator.check_unchanged()


def test_every_rule_answers_every_budget(evaluator: Evaluator) -> None:
    editor = find_editor("lora").model_validate({"learning_rate": 1e-2, "epochs": 4, "rank": 2})
    seen: list[EpochRecord] = []
    result = run_editor(evaluator, editor, seed=0, on_epoch=seen.append)
    record = result.record
    assert record.outcome is Outcome.COMPLETED
    assert {(a.rule, a.epsilon) for a in record.answers} == {
        (rule, epsilon) for rule in Rule for epsilon in (1e-1, 1e-2)
    }
    assert tuple(seen) == record.epochs
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3, 4]
    for answer in record.answers:
        delta = result.deltas.get((answer.rule, answer.epsilon))
        assert (delta is None) == (answer.epoch is None)
        if answer.epoch is None:
            assert (answer.alpha, answer.gain) == (0.0, 0.0)
        else:
            assert answer.deviation.estimate <= answer.epsilon
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record
    evaluator.check_unchanged()


def test_reported_success_is_that_of_the_returned_delta(
    evaluator: Evaluator, neox: LanguageModel
) -> None:
    editor = find_editor("lora").model_validate({"learning_rate": 2e-2, "epochs": 4, "rank": 4})
    result = run_editor(evaluator, editor, seed=0)
    for (rule, epsilon), delta in result.deltas.items():
        with neox.edited(delta):
            again = evaluator.success_meter(SplitName.VAL).scores()
        reported = result.at(epsilon, rule).record.scores
        assert again.row_success == reported.row_success
        assert rule is not Rule.FITTED or again == reported


@pytest.mark.parametrize("seed", range(4))
def test_rules_choose_among_the_epochs_as_they_say(evaluator: Evaluator, seed: int) -> None:
    record = run_editor(evaluator, Scripted(strengths=(0.5, 2.0, 1.0, 4.0)), seed=seed).record
    for epsilon in evaluator.budget.epsilons:
        under = [e.epoch for e in record.epochs if e.deviation.estimate < epsilon]
        assert record.answer(epsilon, Rule.PUBLISHED).epoch == (under[-1] if under else None)
        likely = [e for e in record.epochs if e.deviation.probably_within(epsilon)]
        best = record.answer(epsilon, Rule.BEST)
        assert (best.epoch is None) == (not likely)
        assert best.epoch is None or best.success == max(e.success for e in likely)
        fitted = record.answer(epsilon, Rule.FITTED)
        assert fitted.epoch is None or fitted.deviation.probably_within(epsilon)


def test_memory_running_out_is_a_failed_record(evaluator: Evaluator) -> None:
    result = run_editor(evaluator, Scripted(strengths=(1.0, 1.0), breaks_at=2), seed=0)
    assert result.record.outcome is Outcome.FAILED
    assert "Memory ran out" in str(result.record.failure)
    with pytest.raises(EditError, match="Memory ran out"):
        result.at(1e-1)
    evaluator.check_unchanged()


def test_nan_is_a_failed_record(evaluator: Evaluator) -> None:
    result = run_editor(evaluator, Scripted(strengths=(float("nan"),)), seed=0)
    assert result.record.outcome is Outcome.FAILED
    evaluator.check_unchanged()


def test_the_test_split_chooses_nothing(evaluator: Evaluator) -> None:
    editor = find_editor("lora").model_validate({"learning_rate": 1e-2, "epochs": 4, "rank": 2})
    result = run_editor(
        evaluator, editor, seed=1, split=SplitName.TEST, epoch=2, rule=Rule.FITTED, epsilon=1e-1
    )
    (answer,) = result.record.answers
    assert result.record.split is SplitName.TEST
    assert answer.epoch in (2, None)
    assert [epoch.epoch for epoch in result.record.epochs] == [2]


@pytest.mark.parametrize("ended_at", [1, 3])
def test_a_method_that_ends_early_is_fitted_where_it_ended(
    evaluator: Evaluator, ended_at: int
) -> None:
    editor = Scripted(strengths=(1e-3,) * ended_at, epochs=8)
    assert editor.step_count == 8
    searched = run_editor(evaluator, editor, seed=0).record
    assert not searched.stopped_early
    assert searched.answer(1e-1).epoch is not None
    retrained = run_editor(
        evaluator, editor, seed=0, split=SplitName.TEST, epoch=6, rule=Rule.FITTED, epsilon=1e-1
    )
    assert retrained.record.answer(1e-1).epoch == ended_at
    assert [epoch.epoch for epoch in retrained.record.epochs] == [ended_at]


def test_trials_do_not_depend_on_what_ran_before(evaluator: Evaluator) -> None:
    lora = find_editor("lora").model_validate({"learning_rate": 1e-2, "epochs": 2, "rank": 2})
    full = find_editor("full_finetuning").model_validate({"learning_rate": 1e-3, "epochs": 2})

    def numbers(record: TrialRecord) -> str:
        return record.model_dump_json(exclude={"seconds"})

    first = numbers(run_editor(evaluator, lora, seed=0).record)
    run_editor(evaluator, full, seed=5)
    run_editor(evaluator, Scripted(strengths=(float("nan"),)), seed=0)
    assert numbers(run_editor(evaluator, lora, seed=0).record) == first


def test_hopeless_edits_stop_early(evaluator: Evaluator) -> None:
    result = run_editor(evaluator, Scripted(strengths=(3e4, 3e4, 3e4)), seed=0)
    if not result.record.stopped_early:
        pytest.skip("the tiny model survives any strength")
    assert len(result.record.epochs) == 1


def test_parts_of_general_text_share_no_document(general: GeneralText) -> None:
    parts = {part: set(general.source.documents(part)) for part in TextPart}
    assert all(parts.values())
    assert not parts[TextPart.SEARCH] & parts[TextPart.CONFIRMATION]
    assert not parts[TextPart.AUXILIARY] & (parts[TextPart.SEARCH] | parts[TextPart.CONFIRMATION])


def test_too_little_general_text_is_refused(neox: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a big town\n")
    with pytest.raises(TaskError, match="at least"):
        GeneralText(FileDocuments(path), neox, block_length=16).corpus(TextPart.SEARCH)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(TaskError, match=r"bad.jsonl:2"):
        list(FileDocuments(path).documents(TextPart.SEARCH))


def _answers(result: TrialResult) -> dict[tuple[Rule, float], dict[str, torch.Tensor]]:
    return {key: delta.tensors() for key, delta in result.deltas.items()}


def test_a_trial_gives_the_same_bits_whatever_ran_before(
    neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path
) -> None:
    shared: dict[str, object] = {"target_steps": 4, "prefixes": 2}
    editors = [
        find_editor(name).model_validate({**shared, **own})
        for name, own in (
            ("memit", {"covariance_weight": 1.0}),
            # Another weight shares the target vectors, another clamp must not.
            ("memit", {"covariance_weight": 50.0}),
            ("memit", {"covariance_weight": 1.0, "clamp": 0.1}),
            ("memit", {"covariance_weight": 1.0, "batches": 2}),
            ("emmet", {}),
            ("alphaedit", {"null_share": 0.5}),
            ("rome", {}),
            ("rome", {"clamp": 0.5, "keep_share": 0.3}),
        )
    ]
    budget = Budget(epsilons=(1e-1,))
    found: list[dict[int, dict[tuple[Rule, float], dict[str, torch.Tensor]]]] = []
    orders = [range(len(editors)), reversed(range(len(editors)))]
    for number, order in enumerate(orders):
        cache = Cache(tmp_path / f"cache {number}")
        evaluator = Evaluator(neox, task, budget, general, cache=cache)
        found.append(
            {index: _answers(run_editor(evaluator, editors[index], seed=0)) for index in order}
        )
    # And each alone, where nothing was kept from any other.
    found.append({})
    for index, editor in enumerate(editors):
        evaluator = Evaluator(neox, task, budget, general, cache=Cache(tmp_path / f"alone {index}"))
        found[-1][index] = _answers(run_editor(evaluator, editor, seed=0))
    for index, editor in enumerate(editors):
        assert found[0][index], f"{editor} gave no edit within the budget"
        for other in found[1:]:
            assert other[index].keys() == found[0][index].keys()
            for key, tensors in found[0][index].items():
                assert all(
                    torch.equal(tensors[name], other[index][key][name]) for name in tensors
                ), f"{editor} differs"


class Reader(Scripted):
    """Yields a change if the true facts reached it as they should, and nothing otherwise."""

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        told = [row.target for row in aux.facts.rows] if aux.facts is not None else []
        yield from super().steps(model, examples, aux, seed=seed) if told == [" big"] else ()


@pytest.mark.parametrize("rule", [SuccessCriterion.LIKELIER, SuccessCriterion.TOKENS])
def test_a_fact_task_goes_through_a_trial(
    neox: LanguageModel, task: Task, general: GeneralText, rule: SuccessCriterion, tmp_path: Path
) -> None:
    def facts_of(split: Split) -> Split:
        def with_contrast(rows: ExampleSet) -> ExampleSet:
            changed = (row.model_copy(update={"contrast": " a big town"}) for row in rows.rows)
            return rows.model_copy(update={"rows": tuple(changed)})

        return split.model_copy(
            update={
                "canonical": with_contrast(split.canonical),
                "ood": with_contrast(split.ood),
                "neighbours": with_contrast(split.ood).rows,
                "generations": (GenerationPrompt(prompt="Togo is", record="1"),),
                "facts": (Example(prompt="Lome is", target=" big"),),
            }
        )

    update = {"success": rule, "threshold": None, "val": facts_of(task.val)}
    facts = task.model_copy(update=update)
    evaluator = Evaluator(
        neox, facts, Budget(epsilons=(1e-1,)), general, cache=Cache(tmp_path / "c")
    )
    assert evaluator.auxiliary_for(SplitName.TEST).facts is None
    record = run_editor(evaluator, Reader(strengths=(0.01,), epochs=1), seed=0).record
    assert record.failure is None
    assert len(record.epochs) == 1
    assert record.base is not None
    for scores in (record.base, record.answer(1e-1).scores):
        figures = scores.fact_figures()
        assert {"efficacy", "generalisation", "specificity", "edit_score"} <= figures.keys()
        assert scores.generalisation == scores.success
        assert scores.fluency is not None
        assert (scores.locality_base is not None) == (rule is SuccessCriterion.TOKENS)
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record


def _pool(task: Task) -> Task:
    """The task with a record per edit, of which one is made, judged as questions are."""

    def named(split: Split) -> Split:
        def rows(some: ExampleSet, prompt: str = "{}") -> ExampleSet:
            named = (
                row.model_copy(
                    update={
                        "record": str(number % len(split.canonical)),
                        "prompt": prompt.format(row.prompt),
                    }
                )
                for number, row in enumerate(some.rows)
            )
            return ExampleSet(loss=some.loss, rows=tuple(named))

        parts = {name: rows(getattr(split, name)) for name in ("canonical", "ood")}
        outside = rows(split.hard_negatives, "The {}")
        return split.model_copy(update=parts | {"hard_negatives": outside})

    given = {"success": SuccessCriterion.SEQUENCE, "threshold": None, "simultaneous_edits": 1}
    kept = {name: getattr(task, name) for name in ("name", "description", "source", "licence")}
    return Task(**kept, loss=task.loss, val=named(task.val), test=named(task.test), **given)


def test_only_the_edits_that_are_made_at_once_are_made_and_judged(
    neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path
) -> None:
    pool = _pool(task)
    assert len(pool.val.canonical) > 1
    budget = Budget(epsilons=(0.9,))
    evaluator = Evaluator(neox, pool, budget, general, cache=Cache(tmp_path / "cache"))
    split = evaluator.split(SplitName.VAL)
    assert [row.record for row in split.canonical.rows] == ["0"]
    assert len(evaluator.base_scores(SplitName.VAL).row_success) == len(split.ood)
    seen: list[ExampleSet] = []

    class Watching(Scripted):
        def steps(
            self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
        ) -> Iterator[EpochEdit]:
            seen.append(examples)
            yield from super().steps(model, examples, aux, seed=seed)

    answer = run_editor(evaluator, Watching(strengths=(0.1,)), seed=0).at(0.9).record
    assert seen == [split.canonical]
    assert len(answer.scores.row_success) == len(split.ood)
    assert answer.scores.drawdown is not None
    # A change of weights has no scope that could be judged.
    assert answer.scores.scope_auc is None


def test_a_memory_is_judged_by_its_scope_too(
    neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path
) -> None:
    evaluator = Evaluator(
        neox, _pool(task), Budget(epsilons=(0.9,)), general, cache=Cache(tmp_path / "c")
    )
    editor = find_editor("look_up").model_validate({"threshold": 1e-3})
    scores = run_editor(evaluator, editor, seed=0).at(0.9).record.scores
    split = evaluator.split(SplitName.VAL)
    prompts = {row.prompt for row in (*split.canonical.rows, *split.ood.rows)}
    # The stored prompt alone is found.
    assert scores.scope_precision == 1.0
    assert scores.scope_recall == scores.scope_entry_recall == 1 / len(prompts)
    assert scores.scope_auc is not None
    assert evaluator.base_scores(SplitName.VAL).scope_recall is None
    assert scores.fact_figures()["scope_recall"] == scores.scope_recall


def test_a_pruned_trial_answers_for_its_epochs_so_far(evaluator: Evaluator) -> None:
    editor = find_editor("lora").model_validate({"learning_rate": 1e-2, "epochs": 4, "rank": 2})
    whole = run_editor(evaluator, editor, seed=0).record
    asked: list[int] = []

    def after_the_first(epoch: EpochRecord) -> bool:
        asked.append(epoch.epoch)
        return epoch.epoch == 1

    pruned = run_editor(evaluator, editor, seed=0, prunes=after_the_first)
    record = pruned.record
    assert (record.outcome, record.pruned, record.stopped_early) == (
        Outcome.COMPLETED,
        True,
        False,
    )
    assert asked == [1]
    assert record.epochs == whole.epochs[:1]
    assert {answer.epoch for answer in record.answers} <= {1, None}
    assert any(answer.epoch == 1 for answer in record.answers)  # it is fitted, and may win
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record
    assert "pruned" not in whole.model_dump_json()
    # Asked of every epoch but the last, which ends the trial anyway.
    asked.clear()
    untouched = run_editor(
        evaluator, editor, seed=0, prunes=lambda epoch: bool(asked.append(epoch.epoch))
    )
    assert asked == [1, 2, 3]
    assert untouched.record.answers == whole.answers
    assert not untouched.record.pruned
