import math

import pytest

from tests.support.made_up_records import BASE, answer, failed, record
from tuner.search.objective import objective_of
from tuner.trial.records import Rule


def test_a_kept_budget_is_feasible_and_worth_its_success() -> None:
    found = objective_of(record(answer(0.7, at=5e-4)), Rule.FITTED, 1e-3)
    assert found.value == 0.7
    assert found.constraints["budget"] == pytest.approx(math.log(0.5))


def test_a_gain_on_general_text_is_as_feasible_as_can_be() -> None:
    assert (
        objective_of(record(answer(0.7, at=-1e-4)), Rule.FITTED, 1e-3).constraints["budget"] == -5
    )


def test_what_the_rule_accepted_is_feasible_whatever_the_last_digit() -> None:
    assert (
        objective_of(record(answer(0.7, at=1.001e-3)), Rule.FITTED, 1e-3).constraints["budget"] == 0
    )


@pytest.mark.parametrize("rule", [Rule.BEST, Rule.PUBLISHED])
def test_a_broken_budget_is_told_as_such_and_not_as_the_base_model(rule: Rule) -> None:
    over = record(answer(BASE, at=0, rule=rule, epoch=None), epochs=((0.5, 4e-3), (0.9, 2e-2)))
    found = objective_of(over, rule, 1e-3)
    assert found.value == 0.5
    assert found.constraints["budget"] == pytest.approx(math.log(4))


def test_an_edit_that_no_strength_saves_is_infeasible_and_worth_nothing() -> None:
    over = record(answer(BASE, at=0, epoch=None), epochs=((0.9, 10.0),))
    found = objective_of(over, Rule.FITTED, 1e-3)
    assert found.value == BASE
    assert found.constraints["budget"] == 5


def test_a_violation_is_never_told_as_feasible() -> None:
    over = record(answer(BASE, at=0, epoch=None), epochs=((0.9, 9.9e-4),))
    assert objective_of(over, Rule.FITTED, 1e-3).constraints["budget"] > 0


def test_a_failed_trial_is_the_worst_there_is() -> None:
    found = objective_of(failed(), Rule.FITTED, 1e-3)
    assert (found.value, found.constraints) == (0, {"budget": 5})


RISE = "hard_negative_loss.rise"


def test_every_constraint_of_an_answer_is_told() -> None:
    found = objective_of(
        record(answer(0.7, at=5e-4, violations={RISE: -0.4})), Rule.FITTED, 1e-3, [RISE]
    )
    assert found.constraints == {"budget": pytest.approx(math.log(0.5)), RISE: -0.4}
    assert found.feasible
    broken = record(answer(0.7, at=5e-4, violations={RISE: 0.1}))
    assert not objective_of(broken, Rule.FITTED, 1e-3, [RISE]).feasible


@pytest.mark.parametrize("rule", [Rule.BEST, Rule.FITTED])
def test_what_breaks_another_constraint_is_told_so_and_not_as_over_budget(rule: Rule) -> None:
    fell_back = record(
        answer(BASE, at=0, rule=rule, epoch=None, violations={RISE: -1.0}),
        epochs=((0.5, 5e-4), (0.9, 2e-2)),
        violations={RISE: 0.8},
    )
    found = objective_of(fell_back, rule, 1e-3, [RISE])
    assert found.constraints == {"budget": pytest.approx(math.log(0.5)), RISE: 0.8}


def test_a_failed_trial_breaks_every_constraint_as_badly_as_can_be() -> None:
    found = objective_of(failed(), Rule.FITTED, 1e-3, [RISE, "exact.floor"])
    assert found.constraints == {"budget": 5, RISE: 5, "exact.floor": 5}
