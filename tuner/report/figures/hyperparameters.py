"""What each hyperparameter does: how much it matters, and success against its value."""

from typing import Any

import plotly.graph_objects as go

from tuner.report.figures._answers import answer_for, answer_text, editors_of
from tuner.report.figures._style import COLOURS, INK, empty_figure, styles
from tuner.report.importance import Importances, searched_names
from tuner.report.words import editor_of, setting
from tuner.trial.records import StudyResultRecord, TrialState

_MOST_SLICES = 12


def importance_bars(importances: Importances) -> go.Figure:
    """Return the importances with one standard deviation to either side."""
    rows = list(reversed(importances.rows))
    figure = empty_figure(height=110 + 34 * len(rows))
    figure.add_bar(
        x=[row.mean for row in rows],
        y=[row.name.replace("_", " ") for row in rows],
        orientation="h",
        marker={"color": COLOURS[0]},
        error_x={
            "type": "data",
            "array": [row.high - row.mean for row in rows],
            "color": INK,
            "thickness": 1.2,
        },
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )
    figure.update_xaxes(title="rise in error when shuffled", zeroline=True)
    figure.update_yaxes(automargin=True)
    figure.update_layout(showlegend=False)
    return figure


def slices(result: StudyResultRecord, importances: Importances) -> list[tuple[str, go.Figure]]:
    """Return per searched hyperparameter, the important first, success against its value."""
    ranks = {row.name: rank for rank, row in enumerate(importances.rows)}
    names = [name for name in searched_names(result) if name != "editor"]
    names.sort(key=lambda name: ranks.get(name, len(ranks)))
    return [(name, _slice(result, name)) for name in names[:_MOST_SLICES]]


def _slice(result: StudyResultRecord, name: str) -> go.Figure:
    figure = empty_figure(height=300)
    summary = result.summary
    tried = [entry for entry in result.entries if name in entry.parameters]
    for style, editor in zip(styles(), editors_of(result), strict=False):
        answers = [
            (entry, answer)
            for entry in tried
            if editor_of(entry) == editor
            and (answer := answer_for(entry.record, summary.target_epsilon, summary)) is not None
        ]
        if not answers:
            continue
        figure.add_scatter(
            x=[_coordinate(entry.parameters[name]) for entry, _ in answers],
            y=[answer.success for _, answer in answers],
            mode="markers",
            name=editor,
            marker={"color": style[0], "symbol": style[1], "size": 8, "opacity": 0.75},
            text=[answer_text(entry, answer) for entry, answer in answers],
            hovertemplate="%{text}<extra></extra>",
        )
    failed = [entry for entry in tried if entry.state is TrialState.FAILED]
    if failed:
        figure.add_scatter(
            x=[_coordinate(entry.parameters[name]) for entry in failed],
            y=[0.0 for _ in failed],
            mode="markers",
            name="failed",
            marker={"color": INK, "symbol": "x-thin", "size": 9, "line": {"width": 2}},
            text=[f"trial {entry.number} failed" for entry in failed],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    values = [entry.parameters[name] for entry in tried]
    figure.update_xaxes(title=name.replace("_", " "), **_scale(values))
    figure.update_yaxes(title="success", rangemode="tozero")
    return figure


def _scale(values: list[Any]) -> dict[str, Any]:
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return {"type": "category"}
    if all(isinstance(value, int) for value in numbers) and len(set(numbers)) <= 8:
        places = sorted(set(numbers))
        wide = places[0] > 0 and places[-1] >= 8 * places[0]
        return {"type": "log" if wide else "linear", "tickvals": places}
    if numbers and min(numbers) > 0 and max(numbers) >= 20 * min(numbers):
        return {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {"type": "linear"}


def _coordinate(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number else setting(value)
