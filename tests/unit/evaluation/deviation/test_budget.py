"""A budget's names are exact: what they say reads back as the very number."""

import pytest

from tuner.evaluation.deviation.budget import (
    epsilon_label,
    epsilon_name,
    epsilon_of_label,
    epsilon_of_name,
)


@pytest.mark.parametrize(
    ("epsilon", "name", "label"),
    [
        (1e-3, "0.001", "eps_1e-03"),
        (1e-4, "0.0001", "eps_1e-04"),
        (1e-5, "1e-05", "eps_1e-05"),
        (2.5e-5, "2.5e-05", "eps_2.5e-05"),
        (0.1, "0.1", "eps_1e-01"),
        (0.012345678, "0.012345678", "eps_1.2345678e-02"),
        (1 / 150, "0.006666666666666667", "eps_6.666666666666667e-03"),
    ],
)
def test_a_budget_is_named_exactly_and_where_that_was_exact_before_as_before(
    epsilon: float, name: str, label: str
) -> None:
    assert epsilon_name(epsilon) == name
    assert epsilon_of_name(name) == epsilon
    assert epsilon_label(epsilon) == label
    assert epsilon_of_label(label) == epsilon


def test_budgets_alike_to_six_digits_have_names_of_their_own() -> None:
    one, other = 0.0123456, 0.01234561
    assert f"{one:g}" == f"{other:g}"
    assert epsilon_name(one) != epsilon_name(other)
    assert epsilon_label(one) != epsilon_label(other)


def test_other_names_stand_for_no_budget() -> None:
    assert epsilon_of_name("notes") is None
    assert epsilon_of_name(".draft") is None
