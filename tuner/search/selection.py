"""Which trials are worth confirming, and what a winner's retraining says."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from tuner.editing.task import ExampleSet
from tuner.evaluation.deviation.budget import Certificate
from tuner.evaluation.scores import Interval, Scores
from tuner.evaluation.statistics.grouping import Grouping
from tuner.trial.records import Answer, Outcome, Rule, SeedResult, TrialEntry


def answer_of(entry: TrialEntry, rule: Rule, epsilon: float) -> Answer | None:
    """Return the edit that a trial offers for a budget; None where that is the base model.

    An edit that breaks another constraint is not on offer either.
    """
    if entry.record is None or entry.record.outcome is Outcome.FAILED:
        return None
    answer = entry.record.answer(epsilon, rule)
    return answer if answer.feasible else None


def rank(entries: Sequence[TrialEntry], rule: Rule, epsilon: float) -> list[TrialEntry]:
    """Return the trials whose edit keeps all constraints and gains something, the best first.

    Ordered by success, then by the smaller deviation, then by age. Of trials with the same
    hyperparameters only the best is listed.
    """
    offers = [(answer_of(entry, rule, epsilon), entry) for entry in entries]
    ordered = sorted(
        (-answer.success, answer.deviation.estimate, entry.number, entry)
        for answer, entry in offers
        if answer is not None and answer.gain > 0
    )
    by_parameters: dict[str, TrialEntry] = {}
    for *_, entry in ordered:
        by_parameters.setdefault(json.dumps(entry.parameters, sort_keys=True), entry)
    return list(by_parameters.values())


def corrected_confidence(confidence: float, candidates: int) -> float:
    """Return the confidence of each certificate, so that all of them together keep `confidence`.

    The winner is chosen among the candidates that hold, so one wrong certificate among them is
    one too many (Bonferroni).
    """
    return 1 - (1 - confidence) / max(candidates, 1)


def next_candidate(
    candidates: Sequence[TrialEntry], certificates: Mapping[int, Certificate]
) -> TrialEntry | None:
    """Return the candidate to confirm next; None once one holds or all have been looked at."""
    for entry in candidates:
        if entry.number not in certificates:
            return entry
        if certificates[entry.number].holds:
            return None
    return None


def select(
    candidates: Sequence[TrialEntry], certificates: Mapping[int, Certificate]
) -> TrialEntry | None:
    """Return the best candidate whose certificate holds, else the best, else None."""
    for entry in candidates:
        if entry.number in certificates and certificates[entry.number].holds:
            return entry
    return candidates[0] if candidates else None


def seeds_within_budget(results: Sequence[SeedResult]) -> int:
    """Return with how many seeds the budget was surely kept on fresh text."""
    return sum(result.certificate.holds for result in results)


def seeds_within_constraints(results: Sequence[SeedResult]) -> int:
    """Return with how many seeds the constraints beside the budget were kept on the test split."""
    return sum(result.answer.keeps_constraints for result in results)


def retest_gain(
    results: Sequence[SeedResult], base: Scores, rows: ExampleSet, *, confidence: float
) -> tuple[float, Interval] | None:
    """Return the mean gain over seeds, and its interval over seeds and rows.

    Two sources of chance are added as variances: rows (a bootstrap over records or subjects of
    each row's gain averaged over the seeds, since such rows are not independent) and seeds
    (their sample variance). The quantile is Student's, with Welch and Satterthwaite's degrees of
    freedom, so that three seeds claim no more than three seeds know. Seeds that broke the budget
    or failed count like the others.
    """
    if not results or not base.row_success:
        return None
    gained = np.array([result.answer.scores.row_success for result in results], float)
    gains = gained - np.array(base.row_success, float)
    groups = Grouping.of(rows.rows)
    by_seed = np.array([groups.mean(gain) for gain in gains])
    mean = float(by_seed.mean())
    by_rows = groups.interval(gains.mean(axis=0), confidence=confidence)
    normal = float(stats.norm.ppf((1 + confidence) / 2))
    row_error = (by_rows.high - by_rows.low) / (2 * normal)
    seeds = len(results)
    seed_error = float(by_seed.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    error = math.hypot(row_error, seed_error)
    half = error * normal
    if error > 0:
        freedom = error**4 / (
            row_error**4 / max(groups.count - 1, 1) + seed_error**4 / max(seeds - 1, 1)
        )
        half = error * float(stats.t.ppf((1 + confidence) / 2, freedom))
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return mean, Interval(low=low, high=high, confidence=confidence)
