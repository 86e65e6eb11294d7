from tests.support.made_up_records import BASE, answer, deviation, failed, record, scores
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.evaluation.deviation.budget import Certificate, Verdict
from tuner.search.selection import (
    corrected_confidence,
    next_candidate,
    rank,
    retest_gain,
    seeds_within_budget,
    seeds_within_constraints,
    select,
)
from tuner.trial.records import Answer, Rule, SeedResult, TrialEntry, TrialRecord, TrialState


def entry(number: int, found: TrialRecord, **parameters: int) -> TrialEntry:
    return TrialEntry(
        number=number,
        state=TrialState.COMPLETED,
        parameters=parameters or {"rank": number},
        record=found,
    )


def certificate(verdict: Verdict) -> Certificate:
    return Certificate(
        epsilon=1e-3, verdict=verdict, deviation=deviation(1e-4), corpus="c", corpus_hash="h"
    )


def test_trials_are_ranked_by_success_within_the_budget() -> None:
    entries = [
        entry(0, record(answer(0.5, at=1e-4))),
        entry(1, record(answer(0.9, at=5e-3))),  # over
        entry(2, record(answer(0.7, at=5e-4))),
        entry(3, record(answer(0.7, at=4e-4))),
        entry(4, record(answer(BASE, at=0, epoch=None))),
        entry(5, failed()),
        entry(6, record(answer(BASE, at=1e-6))),  # gains nothing
    ]
    assert [one.number for one in rank(entries, Rule.FITTED, 1e-3)] == [3, 2, 0]


def test_an_edit_that_breaks_another_constraint_is_not_on_offer() -> None:
    kept, broken = {"hard_negative_loss.rise": -0.1}, {"hard_negative_loss.rise": 0.1}
    entries = [
        entry(0, record(answer(0.9, at=1e-4, violations=broken))),
        entry(1, record(answer(0.5, at=1e-4, violations=kept))),
    ]
    assert [one.number for one in rank(entries, Rule.FITTED, 1e-3)] == [1]
    results = [_result(seed, one) for seed, one in enumerate(_offers(entries))]
    assert (seeds_within_budget(results), seeds_within_constraints(results)) == (2, 1)


def _offers(entries: list[TrialEntry]) -> list[Answer]:
    return [one.record.answer(1e-3) for one in entries if one.record is not None]


def test_the_same_hyperparameters_stand_for_one_candidate() -> None:
    entries = [
        entry(0, record(answer(0.5, at=1e-4)), rank=1),
        entry(1, record(answer(0.6, at=1e-4)), rank=1),
    ]
    assert [one.number for one in rank(entries, Rule.FITTED, 1e-3)] == [1]


def test_the_best_certified_candidate_wins_and_else_the_best_says_so() -> None:
    first, second = entry(0, record(answer(0.9, at=1e-4))), entry(1, record(answer(0.8, at=1e-4)))
    over, within = certificate(Verdict.OVER), certificate(Verdict.WITHIN)
    assert select([first, second], {0: over, 1: within}) is second
    assert select([first, second], {0: over, 1: over}) is first
    assert select([], {}) is None


def test_candidates_are_confirmed_in_turn_until_one_holds() -> None:
    first, second = entry(0, record(answer(0.9, at=1e-4))), entry(1, record(answer(0.8, at=1e-4)))
    over, within = certificate(Verdict.OVER), certificate(Verdict.WITHIN)
    assert next_candidate([first, second], {}) is first
    assert next_candidate([first, second], {0: within}) is None
    assert next_candidate([first, second], {0: over}) is second
    assert next_candidate([first, second], {0: over, 1: over}) is None


def test_more_candidates_need_surer_certificates() -> None:
    assert corrected_confidence(0.95, 1) == 0.95
    assert corrected_confidence(0.95, 5) == 0.99


def _result(seed: int, found: Answer) -> SeedResult:
    return SeedResult(seed=seed, answer=found, certificate=certificate(Verdict.WITHIN))


def test_the_test_gain_counts_rows_and_seeds() -> None:
    rows = ExampleSet(
        loss=LossKind.LIKELIHOOD,
        rows=tuple(Example(prompt="p", target=" t", subject=f"s{index}") for index in range(20)),
    )
    agreeing = [_result(seed, answer(0.7, at=1e-4)) for seed in range(3)]
    found = retest_gain(agreeing, scores(BASE), rows, confidence=0.95)
    assert found is not None
    mean, interval = found
    assert abs(mean - 0.5) < 1e-9
    assert 0.2 < interval.low < 0.5 < interval.high < 0.8
    scattered = [_result(seed, answer(level, at=1e-4)) for seed, level in enumerate((0.3, 0.7, 1))]
    wider = retest_gain(scattered, scores(BASE), rows, confidence=0.95)
    assert wider is not None
    assert wider[1].high - wider[1].low > interval.high - interval.low
    assert retest_gain([], scores(BASE), rows, confidence=0.95) is None


def test_the_test_gain_is_averaged_over_records_where_there_are_any() -> None:
    """Rows 4 to 13 of 20 gain; they are one record of eleven, beside ten of one row each."""
    rows = ExampleSet(
        loss=LossKind.LIKELIHOOD,
        rows=tuple(
            Example(prompt="p", target=" t", record="big" if 4 <= index < 14 else str(index))
            for index in range(20)
        ),
    )
    found = retest_gain([_result(0, answer(0.7, at=1e-4))], scores(BASE), rows, confidence=0.95)
    assert found is not None
    assert abs(found[0] - 1 / 11) < 1e-9
    assert found[1].low <= 1 / 11 <= found[1].high
