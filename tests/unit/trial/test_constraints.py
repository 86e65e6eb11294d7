"""Trials under constraints beside the budget: what breaks one is scaled down or not chosen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tuner.editing.constraint import Constraint
from tuner.editing.corpus import GeneralText
from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, Task
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Budget
from tuner.files.cache import Cache
from tuner.search.objective import objective_of
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Answer, Rule, SplitName, TrialRecord
from tuner.trial.run import run_editor

EPSILONS = (1e-1, 1e-2)
RISE = "hard_negative_loss.rise"

Judge = Callable[..., Evaluator]


@pytest.fixture
def judge(neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path) -> Judge:
    """Evaluatores with constraints, all of the same model, task and text."""

    def make(*constraints: Constraint) -> Evaluator:
        cache = Cache(tmp_path / "cache")
        budget = Budget(epsilons=EPSILONS)
        return Evaluator(neox, task, budget, general, constraints=constraints, cache=cache)

    return make


class Harmful(Editor):
    """Yields a direction that raises the loss of the hard negative, stronger each epoch."""

    strengths: tuple[float, ...]

    @property
    def steps_per_batch(self) -> int:
        return len(self.strengths)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        name = f"{model.architecture.mlp_modules(1)[0]}.weight"
        weight = model.network.get_parameter(name)
        ids = torch.tensor([model.encode("a big town of Mauritius is Port Louis")])
        weight.requires_grad_(True)
        loss = model.network(input_ids=ids, labels=ids).loss
        (gradient,) = torch.autograd.grad(loss, weight)
        weight.requires_grad_(False)
        for strength in self.strengths:
            yield EpochEdit(WeightDelta({name: Dense(strength * gradient / gradient.norm())}))


EDITOR = Harmful(strengths=(0.02, 0.05, 0.1, 0.2))


def rise(most: float) -> Constraint:
    return Constraint.model_validate({"metric": "hard_negative_loss", "rise": most})


def risen(record: TrialRecord, answer: Answer) -> float:
    assert record.base is not None
    before, after = record.base.hard_negative_loss, answer.scores.hard_negative_loss
    assert before is not None
    assert after is not None
    return after - before


def test_rules_take_no_epoch_that_breaks_a_constraint(judge: Judge) -> None:
    free = run_editor(judge(), EDITOR, seed=0).record
    held = run_editor(judge(rise(0.1)), EDITOR, seed=0).record
    broken = [epoch.epoch for epoch in held.epochs if not epoch.keeps_constraints]
    assert broken == [2, 3, 4]
    for epsilon in EPSILONS:
        assert free.answer(epsilon, Rule.PUBLISHED).epoch == 4
        assert held.answer(epsilon, Rule.PUBLISHED).epoch == 1
        assert held.answer(epsilon, Rule.BEST).epoch == 1


def test_fitting_scales_an_edit_down_until_the_constraint_is_kept(judge: Judge) -> None:
    free = run_editor(judge(), EDITOR, seed=0).record
    held = run_editor(judge(rise(0.1)), EDITOR, seed=0).record
    for epsilon in EPSILONS:
        unlimited, answer = free.answer(epsilon), held.answer(epsilon)
        assert unlimited.alpha == 1
        assert risen(free, unlimited) > 0.1
        assert 0.07 < risen(held, answer) <= 0.1
        assert answer.violations[RISE] == pytest.approx(risen(held, answer) / 0.1 - 1, abs=1e-6)
        assert answer.feasible
    assert objective_of(held, Rule.FITTED, 1e-2, [RISE]).feasible


def test_the_answer_is_the_base_model_where_no_strength_keeps_a_constraint(judge: Judge) -> None:
    floor = Constraint.model_validate({"metric": "exact", "floor": 0.5})  # it never says the target
    record = run_editor(judge(floor, rise(0.1)), EDITOR, seed=0).record
    for answer in record.answers:
        assert answer.epoch is None
        assert answer.violations == {"exact.floor": 1.0, RISE: -1.0}
        assert not answer.feasible
    told = objective_of(record, Rule.FITTED, 1e-2, ["exact.floor", RISE])
    assert list(told.constraints) == ["budget", "exact.floor", RISE]
    assert told.constraints["budget"] < 0 < told.constraints["exact.floor"]
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record


def test_a_constraint_that_is_kept_anyway_changes_no_figure(judge: Judge) -> None:
    free = run_editor(judge(), EDITOR, seed=0).record
    held = run_editor(judge(rise(50.0)), EDITOR, seed=0).record
    assert {answer.violations[RISE] < 0 for answer in held.answers} == {True}
    for with_it, without in zip(held.answers, free.answers, strict=True):
        assert (with_it.epoch, with_it.alpha) == (without.epoch, without.alpha)
        assert with_it.deviation == without.deviation
        assert with_it.success == without.success
    assert "violations" not in free.model_dump_json()


def test_the_test_split_reports_constraints_and_chooses_nothing_by_them(judge: Judge) -> None:
    evaluator = judge(rise(0.01))
    options = {"split": SplitName.TEST, "epoch": 4, "rule": Rule.FITTED, "epsilon": 1e-1}
    (whole,) = run_editor(evaluator, EDITOR, seed=1, **options).record.answers
    assert whole.alpha == 1
    assert whole.violations[RISE] > 0
    assert not whole.feasible
    (scaled,) = run_editor(evaluator, EDITOR, seed=1, most=0.25, **options).record.answers
    assert (scaled.epoch, scaled.alpha) == (4, 0.25)
    assert scaled.deviation.estimate < whole.deviation.estimate


def test_the_task_s_constraints_and_the_study_s_add_up(
    neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path
) -> None:
    drop = Constraint.model_validate({"metric": "exact", "drop": 0.5})
    evaluator = Evaluator(
        neox,
        task.model_copy(update={"constraints": (rise(0.1), drop)}),
        Budget(epsilons=EPSILONS),
        general,
        constraints=(rise(0.05), rise(0.2)),
        cache=Cache(tmp_path / "cache"),
    )
    assert evaluator.constraints == (rise(0.05), drop)


def test_a_constraint_on_what_the_task_cannot_measure_is_refused(judge: Judge) -> None:
    with pytest.raises(ConfigError, match=r"related_loss\.rise cannot be judged: the val split of"):
        judge(Constraint.model_validate({"metric": "related_loss", "rise": 0.1}))
