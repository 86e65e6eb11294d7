from tests.support.made_up_records import BASE, answer, failed, record
from tuner.search.config import StudyConfig
from tuner.search.progress import StudyPhase, snapshot
from tuner.trial.records import TrialEntry, TrialRecord, TrialState

EPSILONS = (1e-3, 1e-4, 1e-5)


def entry(number: int, state: TrialState, found: TrialRecord | None = None) -> TrialEntry:
    return TrialEntry(number=number, state=state, parameters={"rank": number}, record=found)


def test_a_snapshot_counts_and_names_the_incumbents() -> None:
    good = record(*(answer(0.5, at=epsilon / 2, epsilon=epsilon) for epsilon in EPSILONS))
    over = record(*(answer(BASE, at=0, epsilon=epsilon, epoch=None) for epsilon in EPSILONS))
    entries = [
        entry(0, TrialState.COMPLETED, good),
        entry(1, TrialState.COMPLETED, over),
        entry(2, TrialState.FAILED, failed()),
        entry(3, TrialState.RUNNING),
    ]
    config = StudyConfig(task="t", trials=10)
    found = snapshot(
        entries, config, StudyPhase.SEARCH, elapsed_s=40, done_before=1, phase_s=30, idle_s=6
    )
    assert (found.done, found.running, found.failed, found.over_budget) == (3, 1, 1, 1)
    assert [(one.epsilon, one.trial) for one in found.incumbents] == [(e, 0) for e in EPSILONS]
    # Two trials took 24 s; seven are left, and six seconds of the next have gone.
    assert found.eta_s == 7 * 12 - 6


def test_nothing_is_promised_before_anything_has_ended() -> None:
    found = snapshot([], StudyConfig(task="t"), StudyPhase.SEARCH, elapsed_s=1, phase_s=1)
    assert found.eta_s is None
    assert found.incumbents == ()
