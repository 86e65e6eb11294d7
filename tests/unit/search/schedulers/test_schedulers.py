"""Which trials end before their last epoch."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.made_up_records import deviation, record
from tuner.errors import ConfigError
from tuner.search import StudyConfig
from tuner.search.objective import epoch_value
from tuner.search.schedule import TrialSchedule
from tuner.search.schedulers import SCHEDULERS, Curve, Scheduler
from tuner.search.storage.folder import StudyFolder
from tuner.trial.records import EpochRecord, Rule, TrialState


def curve(number: int, *values: float, state: TrialState = TrialState.COMPLETED) -> Curve:
    return Curve(number=number, values=values, epochs=9, state=state)


def answers(name: str, own: Sequence[float], others: Sequence[Curve]) -> list[bool]:
    """The scheduler's answer after each epoch of a trial that would run on."""
    scheduler = SCHEDULERS.find(name)()
    trials = [curve(9, *own[:epoch], state=TrialState.RUNNING) for epoch in range(1, len(own) + 1)]
    return [scheduler.prunes(trial, others) for trial in trials]


def test_none_is_first_in_first_out() -> None:
    better = [curve(number, 1.0, 1.0, 1.0) for number in range(8)]
    assert answers("none", (0.0, 0.0, 0.0), better) == [False] * 3


def test_median_ends_what_is_below_half_of_the_completed_trials_from_the_second_epoch_on() -> None:
    others = [curve(number, 0.1 * number, 0.2 * number) for number in range(5)]
    assert answers("median", (0.0, 0.3), others) == [False, True]
    assert answers("median", (0.0, 0.5), others) == [False, False]
    assert answers("median", (0.5, 0.3), others) == [False, False]  # its best so far counts


def test_median_waits_for_five_completed_trials() -> None:
    running = [curve(number, 1.0, 1.0, state=TrialState.RUNNING) for number in range(4, 9)]
    others = [curve(number, 1.0, 1.0) for number in range(4)]
    assert answers("median", (0.0, 0.0), [*others, *running]) == [False, False]
    assert answers("median", (0.0, 0.0), [*others, curve(4, 1.0, 1.0)]) == [False, True]


def test_successive_halving_lets_the_best_third_go_on_at_each_rung() -> None:
    others = [curve(0, 0.5, 0.5, 0.5, state=TrialState.PRUNED), curve(1, 0.2, 0.2, 0.2)]
    assert answers("successive_halving", (0.4,), others) == [True]
    assert answers("successive_halving", (0.5,), others) == [False]
    # The second epoch is no rung; the third is.
    assert answers("successive_halving", (0.6, 0.1, 0.1), others) == [False, False, True]
    assert answers("successive_halving", (0.0,), others[:1]) == [False]


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_every_scheduler_lets_the_first_trial_of_a_study_run(name: str) -> None:
    assert answers(name, (0.0, 0.0, 0.0, 0.0), []) == [False] * 4


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_no_scheduler_ends_the_best_trial_so_far(name: str) -> None:
    others = [curve(number, 0.1, 0.1, 0.1) for number in range(8)]
    assert answers(name, (0.2, 0.3, 0.4), others) == [False] * 3


def test_an_edit_beyond_its_limits_is_worth_less_than_any_that_keeps_them() -> None:
    def epoch(success: float, at: float, **violations: float) -> EpochRecord:
        return EpochRecord(
            violations=violations,
            epoch=1,
            training_loss=None,
            success=success,
            deviation=deviation(at),
        )

    kept, over = epoch(0.1, 5e-4, drawdown=-0.5), epoch(0.9, 1e-2)
    assert epoch_value(kept, Rule.BEST, 1e-3) == 0.1
    assert epoch_value(over, Rule.BEST, 1e-3) == pytest.approx(-2.302585)
    assert epoch_value(epoch(0.9, 5e-4, drawdown=0.5), Rule.PUBLISHED, 1e-3) == -0.5
    assert epoch_value(over, Rule.FITTED, 1e-3) == 0.9  # scaled down to the budget later


class _Listens(Scheduler):
    """Prunes a trial that is worse than another one was."""

    def prunes(self, trial: Curve, others: Sequence[Curve]) -> bool:
        at = len(trial.values) - 1
        return any(other.values[at:] and other.values[at] > trial.values[at] for other in others)


def test_a_trial_is_compared_with_what_others_of_its_study_left(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    named = f"{_Listens.__module__}:_Listens"
    with pytest.raises(ConfigError):
        SCHEDULERS.find("nobody")
    config = StudyConfig.model_construct(
        **{**dict(StudyConfig(task="country_capital")), "scheduler": named}
    )

    def schedule(number: int, uid: str = "ours") -> TrialSchedule:
        return TrialSchedule(config, folder, uid, number, epochs=3)

    first = record(epochs=((0.5, 1e-4), (0.6, 1e-4), (0.7, 1e-4)))
    leader = schedule(0)
    assert [leader.prunes(epoch) for epoch in first.epochs[:2]] == [False, False]
    assert folder.curves("ours")[0].state is TrialState.RUNNING
    leader.end(first)
    assert folder.curves("ours") == [
        Curve(number=0, values=(0.5, 0.6, 0.7), epochs=3, state=TrialState.COMPLETED)
    ]
    worse = record(epochs=((0.6, 1e-4), (0.4, 1e-4)))
    laggard = schedule(1)
    assert [laggard.prunes(epoch) for epoch in worse.epochs] == [False, True]
    laggard.end(worse.model_copy(update={"pruned": True}))
    assert [known.state for known in folder.curves("ours")] == ["completed", "pruned"]
    # Files that another study of that name has left do not count.
    assert not schedule(2, uid="another").prunes(worse.epochs[1])
    assert leader.prunes(first.epochs[0]) is False
