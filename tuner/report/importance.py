"""Which hyperparameters mattered, and whether the trials are enough to say so."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tuner.trial.records import StudyResultRecord

_FEWEST_TRIALS = 15
_FOLDS = 5
_SHUFFLES = 10
_TREES = 60
# Below this share of explained variance the forest guesses, and so would its importances.
_LEAST_FIT = 0.1


@dataclass(frozen=True)
class Importance:
    """How much worse success is predicted when one hyperparameter is shuffled.

    `low` and `high` are one standard deviation over folds and shuffles to either side.
    """

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Importances:
    """All importances, the largest first, or the reason why there are none."""

    rows: tuple[Importance, ...] = ()
    trials: int = 0
    fit: float = 0.0
    refusal: str | None = None


def importances(result: StudyResultRecord) -> Importances:
    """Return the permutation importances for success at the study's target budget.

    Measured on trials that the forest was not fitted to, so that noise gets no credit.

    Source: Breiman 2001 (Machine Learning 45), section 10, with held-out folds in place of
    out-of-bag samples.
    """
    if find_spec("sklearn") is None:
        return Importances(refusal="scikit-learn is not installed: pip install 'tuner[report]'.")
    names, rows, values = _table(result)
    if len(rows) < _FEWEST_TRIALS:
        return Importances(
            trials=len(rows),
            refusal=f"{len(rows)} completed trials are too few to tell; it takes {_FEWEST_TRIALS}.",
        )
    if not names:
        return Importances(trials=len(rows), refusal="No hyperparameter took two values.")
    if statistics.pstdev(values) == 0:
        return Importances(trials=len(rows), refusal="All trials came out alike.")

    import numpy
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    inputs, outputs = numpy.array(rows), numpy.array(values)
    drops: list[Any] = []
    residual = total = 0.0
    for fit, held_out in KFold(_FOLDS, shuffle=True, random_state=0).split(inputs):
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=0)
        forest.fit(inputs[fit], outputs[fit])
        error = outputs[held_out] - forest.predict(inputs[held_out])
        residual += float((error**2).sum())
        total += float(((outputs[held_out] - outputs[fit].mean()) ** 2).sum())
        permuted = permutation_importance(
            forest,
            inputs[held_out],
            outputs[held_out],
            scoring="neg_mean_absolute_error",
            n_repeats=_SHUFFLES,
            random_state=0,
        )
        drops.append(permuted.importances)
    explained = 1 - residual / total
    if explained < _LEAST_FIT:
        return Importances(
            trials=len(rows),
            fit=explained,
            refusal=(
                f"A forest fitted to the {len(rows)} trials explains {max(explained, 0.0):.0%} of "
                "the variance of trials that it has not seen. That is too little to say what "
                "mattered."
            ),
        )
    every = numpy.concatenate(drops, axis=1)
    found_rows = [
        Importance(
            name, float(mean := drop.mean()), float(mean - drop.std()), float(mean + drop.std())
        )
        for name, drop in zip(names, every, strict=True)
    ]
    found_rows.sort(key=lambda row: -row.mean)
    return Importances(rows=tuple(found_rows), trials=len(rows), fit=explained)


def searched_names(result: StudyResultRecord) -> list[str]:
    """Return the hyperparameters that took at least two values, the most widely used first."""
    seen: dict[str, set[str]] = {}
    uses: dict[str, int] = {}
    for entry in result.entries:
        for name, value in entry.parameters.items():
            seen.setdefault(name, set()).add(repr(value))
            uses[name] = uses.get(name, 0) + 1
    return sorted((name for name in seen if len(seen[name]) > 1), key=lambda n: (-uses[n], n))


def _table(result: StudyResultRecord) -> tuple[list[str], list[list[float]], list[float]]:
    """Return the searched hyperparameters, a row of numbers per completed trial, and successes."""
    names = searched_names(result)
    rows, values = [], []
    for entry in result.entries:
        if not entry.state.has_answers or entry.record is None:
            continue
        try:
            answer = entry.record.answer(result.summary.target_epsilon, result.summary.rule)
        except KeyError:
            continue
        rows.append([entry.parameters.get(name) for name in names])
        values.append(answer.success)
    columns = [_numbers([row[i] for row in rows]) for i in range(len(names))]
    return names, [list(row) for row in zip(*columns, strict=True)], values


def _numbers(column: Sequence[Any]) -> list[float]:
    """Return a column as numbers: categories by rank of name, absent ones below all others."""
    present = [value for value in column if value is not None]
    if all(isinstance(value, (int, float)) and math.isfinite(value) for value in present):
        lowest = min((float(value) for value in present), default=0.0)
        return [lowest - 1 if value is None else float(value) for value in column]
    order = {text: rank for rank, text in enumerate(sorted({str(value) for value in present}))}
    return [-1.0 if value is None else float(order[str(value)]) for value in column]
