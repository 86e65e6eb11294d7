"""How MLflow's own pages open on a study: columns, order and charts, frontier included.

MLflow keeps a shared view as a tag of the experiment, and opens it by the key in the address. It
takes the tag as plain JSON; a version that no longer does says so and shows its usual page.
"""

import json
from collections import Counter
from typing import Any

from tuner.evaluation.deviation.budget import epsilon_label, epsilon_name
from tuner.tracking.content import (
    STUDY_TAG,
    StudyView,
    legal_name,
    metric_name,
)
from tuner.trial.records import TrialState

VIEW_TAG = "mlflow.sharedViewState."
# MLflow refuses longer tags; so many columns would not be read anyway.
_MOST_COLUMNS = 24
_FIXED_COLUMNS = ("attributes.`Run Name`", "runDateAndNestInfo", "duration")
_METRIC_WIDTH = 175  # pixels: the name can be read in full
_SECTION = "tuner-study"


def trial_filter(study_uid: str) -> str:
    """Return MLflow's search for the trials of a study, without the study's own run."""
    return f"tags.`{STUDY_TAG}` = '{study_uid}' AND tags.`tuner.kind` = 'trial'"


def view_key(study_uid: str) -> str:
    """Return the key by which an address asks for the study's view."""
    return f"tuner-{study_uid}"


def shared_view(view: StudyView) -> str:
    """Return the study's view: best trials first, hyperparameters and answers side by side."""
    summary = view.summary
    rule, target = summary.rule, summary.target_epsilon
    success, gain, deviation, alpha = (
        metric_name(quantity, rule, target)
        for quantity in ("success", "gain", "deviation", "alpha")
    )
    counts, started = _searched(view)
    searched = ["editor", *counts][:_MOST_COLUMNS]
    # MLflow leaves out of this chart every run that lacks one of its parameters.
    shared = ["editor", *(name for name in counts if counts[name] == started)]
    others = [metric_name("success", rule, e) for e in summary.epsilons if e != target]
    charts = [
        _chart(
            "frontier",
            "SCATTER",
            f"Frontier at {epsilon_name(target)}",
            **_axes(deviation, success),
        ),
        _chart("epochs", "SCATTER", "Last epochs", **_axes("deviation_log10", "success")),
        _chart(
            "parallel",
            "PARALLEL",
            "Hyperparameters",
            selectedParams=shared,
            selectedMetrics=[success],
            showAllRuns=False,
        ),
        _chart("gain", "BAR", f"Gain at {epsilon_name(target)}", metricKey=gain),
        _line("success"),
        _line("deviation"),
    ]
    metrics = [f"metrics.`{name}`" for name in (success, gain, deviation, alpha, *others)]
    columns = [
        *metrics,
        *(f"params.`{name}`" for name in searched),
        f"tags.`feasible.{epsilon_label(target)}`",
        f"tags.`rank.{epsilon_label(target)}`",
    ]
    state = {
        "searchFilter": trial_filter(summary.uid),
        "orderByKey": f"metrics.`{gain}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [*_FIXED_COLUMNS, *columns],
        "columnWidths": dict.fromkeys(metrics, _METRIC_WIDTH),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": _SECTION,
                "name": "Study",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }
    return json.dumps(state, separators=(",", ":"))


def _searched(view: StudyView) -> tuple[dict[str, int], int]:
    """Return how many trials have each hyperparameter that varies, and how many trials there are.

    The most common come first. While there is but one trial, nothing varies yet and all count.
    """
    started = [e for e in view.entries.values() if e.state is not TrialState.WAITING]
    counts: Counter[str] = Counter()
    values: dict[str, set[str]] = {}
    for entry in started:
        for name, value in entry.parameters.items():
            counts[legal_name(name)] += 1
            values.setdefault(legal_name(name), set()).add(repr(value))
    varied = [n for n in counts if n != "editor" and (len(values[n]) > 1 or len(started) == 1)]
    return {n: counts[n] for n in sorted(varied, key=lambda n: (-counts[n], n))}, len(started)


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}


def _line(metric: str) -> dict[str, Any]:
    return _chart(
        f"line-{metric}",
        "LINE",
        f"{metric.capitalize()} by epoch",
        metricKey=metric,
        lineSmoothness=0,
        xAxisScaleType="linear",
        scaleType="linear",
        range={},
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
    )


def _chart(uuid: str, kind: str, title: str, **settings: Any) -> dict[str, Any]:
    return {
        "uuid": f"tuner-{uuid}",
        "type": kind,
        "displayName": title,
        "runsCountToCompare": 100,
        "metricSectionId": _SECTION,
        "deleted": False,
        "isGenerated": False,
        **settings,
    }
