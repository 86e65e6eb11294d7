import math
import statistics
import warnings
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.search.objective import BUDGET
from tuner.search.proposer import Proposer
from tuner.search.space import EDITOR, Space
from tuner.search.space_file import load_space


@pytest.fixture
def flat(tmp_path: Path) -> Space:
    path = tmp_path / "flat.yaml"
    path.write_text(
        "editor: lora\nsearch:\n"
        "  learning_rate: {type: float, low: 1.0e-5, high: 1.0e-2, log: true}\n"
        "  kl_weight: {type: float, low: 0.1, high: 1.0}\n"
    )
    return load_space(path)


@pytest.fixture
def small(tmp_path: Path) -> Space:
    path = tmp_path / "small.yaml"
    path.write_text(
        "editor: lora\nfixed: {learning_rate: 1.0e-3}\n"
        "search:\n  rank: {type: int, low: 1, high: 12}\n"
    )
    return load_space(path)


def trial(
    space: Space,
    parameters: dict[str, object],
    value: float | None = None,
    constraint: float = 0.0,
    **further: float,
) -> FrozenTrial:
    done = value is not None
    return create_trial(
        state=TrialState.COMPLETE if done else TrialState.RUNNING,
        value=value,
        params=parameters,
        distributions=space.active(parameters),
        constraints={BUDGET: constraint, **further} if done else None,
    )


def test_a_proposal_is_a_function_of_the_history_the_number_and_the_seed(flat: Space) -> None:
    history: list[FrozenTrial] = []
    long_lived = Proposer(flat, "auto", seed=7)
    for number in range(13):
        proposal = long_lived.propose(history, number)
        assert Proposer(flat, "auto", seed=7).propose(history, number) == proposal
        history.append(trial(flat, proposal, value=-abs(math.log10(proposal["learning_rate"]) + 3)))
    assert Proposer(flat, "auto", seed=8).propose(history[:3], 3) != history[3].params


def test_auto_is_gp_for_flat_spaces_and_tpe_for_conditional_ones(flat: Space) -> None:
    both = load_space("both")
    assert Proposer(flat, "auto", seed=0).sampler == "gp"
    assert Proposer(both, "auto", seed=0).sampler == "tpe"
    assert Proposer(both, "auto", seed=0, per_editor=True).sampler == "gp"


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_running_and_finished_trials_are_not_repeated(small: Space, sampler: str) -> None:
    proposer = Proposer(small, sampler, seed=0)
    history: list[FrozenTrial] = []
    for number in range(12):
        proposal = proposer.propose(history, number)
        # Every second trial is still running when the next is proposed.
        value = float(-abs(proposal["rank"] - 3)) if number % 2 else None
        history.append(trial(small, proposal, value))
    assert {one.params["rank"] for one in history} == set(range(1, 13))
    assert proposer.propose(history, 12)["rank"] in range(1, 13)  # exhausted: a repeat


def test_each_editor_gets_its_turn_and_sees_its_own_trials() -> None:
    space = load_space("both")
    proposer = Proposer(space, "tpe", seed=0, per_editor=True)
    history: list[FrozenTrial] = []
    for number in range(26):
        proposal = proposer.propose(history, number)
        history.append(trial(space, proposal, value=0.1 * number))
    assert [one.params[EDITOR] for one in history[:2]] == ["lora", "full_finetuning"]
    assert sum(one.params[EDITOR] == "lora" for one in history) == 13


def test_optuna_keeps_quiet(
    flat: Space, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Proposer(flat, "tpe", seed=0).propose([], 0)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def _narrow(parameters: dict[str, float]) -> tuple[float, float]:
    """Success rises with the learning rate; a thin diagonal strip keeps the budget."""
    rate = (math.log10(parameters["learning_rate"]) + 5) / 3
    weight = (parameters["kl_weight"] - 0.1) / 0.9
    violation = 4 * (rate - 0.15 - 0.55 * weight)
    return rate, max(-5.0, min(5.0, violation))


def _best_feasible(space: Space, seed: int, *, blind: bool) -> float:
    proposer = Proposer(space, "gp", seed=seed)
    history: list[FrozenTrial] = []
    best = 0.0
    for number in range(22):
        proposal = proposer.propose(history, number)
        value, constraint = _narrow(proposal)
        if constraint <= 0:
            best = max(best, value)
        history.append(trial(space, proposal, value, 0.0 if blind else constraint))
    return best


def test_a_sampler_that_sees_the_budget_beats_one_that_does_not(flat: Space) -> None:
    seeds = range(3)
    seeing = [_best_feasible(flat, seed, blind=False) for seed in seeds]
    blind = [_best_feasible(flat, seed, blind=True) for seed in seeds]
    assert statistics.median(seeing) > statistics.median(blind) + 0.05
    assert statistics.median(seeing) > 0.6  # the optimum is 0.7


def _kept_of_the_last(space: Space, sampler: str, *, blind: bool) -> int:
    """Search a hill whose top two constraints cut off, one along each hyperparameter.

    Return how many of the last nine trials keep both; `blind` withholds the second one.
    """
    proposer = Proposer(space, sampler, seed=0)
    history: list[FrozenTrial] = []
    kept = []
    for number in range(20):
        proposal = proposer.propose(history, number)
        rate = (math.log10(proposal["learning_rate"]) + 5) / 3
        weight = (proposal["kl_weight"] - 0.1) / 0.9
        value = 1 - (rate - 0.8) ** 2 - (weight - 0.8) ** 2
        budget, rise = 5 * (weight - 0.5), 5 * (rate - 0.5)
        kept.append(budget <= 0 and rise <= 0)
        further = {} if blind else {"hard_negative_loss.rise": rise}
        history.append(trial(space, proposal, value, budget, **further))
    return sum(kept[-9:])


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_the_sampler_sees_every_constraint(flat: Space, sampler: str) -> None:
    seeing = _kept_of_the_last(flat, sampler, blind=False)
    blind = _kept_of_the_last(flat, sampler, blind=True)
    assert seeing >= blind + 2


def test_a_database_may_give_constraints_back_in_any_order(flat: Space) -> None:
    history: list[FrozenTrial] = []
    shuffled: list[FrozenTrial] = []
    for number in range(11):
        proposal = Proposer(flat, "random", seed=0).propose(history, number)
        rate = math.log10(proposal["learning_rate"])
        told = {"hard_negative_loss.rise": rate + 4, "exact.floor": -rate - 5}
        history.append(trial(flat, proposal, rate, -1.0, **told))
        backwards = dict(reversed(list(told.items()))) if number % 2 else told
        shuffled.append(trial(flat, proposal, rate, -1.0, **backwards))
    proposer = Proposer(flat, "gp", seed=0)
    assert proposer.propose(shuffled, 11) == proposer.propose(history, 11)
