"""Success against deviation: what each trial reached, and the best within each deviation."""

from collections.abc import Iterator
from dataclasses import dataclass

import plotly.graph_objects as go

from tuner.report.figures._answers import answer_for, answer_text, editors_of, settings_text
from tuner.report.figures._deviation_axis import DeviationAxis
from tuner.report.figures._style import FAINT, INK, empty_figure, styles
from tuner.report.words import deviation, editor_of, epsilon_words, gain, share
from tuner.trial.records import StudyResultRecord, TrialRecord, Winner


@dataclass(frozen=True)
class _Point:
    """One place on the frontier's plane."""

    trial: int
    editor: str
    deviation: float
    success: float
    text: str
    kept: bool
    """Whether every constraint beside the budget is kept."""


def frontier(result: StudyResultRecord) -> go.Figure:
    """Return success against deviation: every epoch, every answer, the winners, the budgets."""
    figure = empty_figure(height=520)
    epochs, answers = list(_epoch_points(result)), list(_answer_points(result))
    if not epochs and not answers:
        return figure
    axis = DeviationAxis(result.summary, [p.deviation for p in (*epochs, *answers)])
    axis.draw_band(figure)
    axis.draw_budgets(figure)
    for style, name in zip(styles(), editors_of(result), strict=False):
        mine = [point for point in epochs if point.editor == name]
        figure.add_scatter(
            x=[axis.place(point.deviation) for point in mine],
            y=[point.success for point in mine],
            mode="markers",
            name=f"{name}, each epoch",
            marker={"color": style[0], "symbol": style[1], "size": 6, "opacity": 0.35},
            text=[point.text for point in mine],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_scatter(
        x=[axis.place(point.deviation) for point in answers],
        y=[point.success for point in answers],
        mode="markers",
        name=f"{result.summary.rule} answers",
        marker={
            "color": "rgba(0,0,0,0)",
            "symbol": "circle",
            "size": 8,
            "line": {"color": INK, "width": 1},
            "opacity": 0.6,
        },
        text=[point.text for point in answers],
        hovertemplate="%{text}<extra></extra>",
    )
    steps = _envelope([*epochs, *answers], axis)
    figure.add_scatter(
        x=[x for x, _ in steps],
        y=[y for _, y in steps],
        mode="lines",
        name="frontier",
        line={"color": INK, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    _draw_winners(figure, result.winners, axis)
    base = next((r.base for r in _records(result) if r.base is not None), None)
    if base is not None:
        figure.add_hline(
            y=base.success,
            line={"color": FAINT, "width": 1, "dash": "dot"},
            annotation_text=f"base {share(base.success)}",
            annotation_position="bottom right",
            annotation_font_color="#555",
        )
    figure.update_xaxes(axis.settings())
    figure.update_yaxes(title="success", rangemode="tozero")
    return figure


def _draw_winners(figure: go.Figure, winners: tuple[Winner, ...], axis: DeviationAxis) -> None:
    if not winners:
        return
    figure.add_scatter(
        x=[axis.place(winner.validation.deviation.estimate) for winner in winners],
        y=[winner.validation.success for winner in winners],
        mode="markers",
        name="winner per budget",
        marker={
            "color": "#F0E442",
            "symbol": "star",
            "size": 17,
            "line": {"color": INK, "width": 1.2},
        },
        text=[
            f"best at ε = {epsilon_words(winner.epsilon)}: trial {winner.trial}<br>"
            f"success {share(winner.validation.success)}, gain {gain(winner.validation.gain)}<br>"
            f"deviation {deviation(winner.validation.deviation.estimate)}"
            for winner in winners
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _envelope(points: list[_Point], axis: DeviationAxis) -> list[tuple[float, float]]:
    """Return the best success reached within every deviation, as steps from left to right."""
    steps: list[tuple[float, float]] = []
    placed = [(axis.place(point.deviation), point.success) for point in points if point.kept]
    for x, y in sorted((x, -y) for x, y in placed if x is not None):
        if not steps or -y > steps[-1][1]:
            steps.append((x, -y))
    if steps:
        steps.append((axis.top, steps[-1][1]))
    return steps


def _epoch_points(result: StudyResultRecord) -> Iterator[_Point]:
    for entry in result.entries:
        for epoch in entry.record.epochs if entry.record else ():
            estimate = epoch.deviation.estimate
            text = (
                f"trial {entry.number}, epoch {epoch.epoch}<br>success {share(epoch.success)}"
                f"<br>deviation {deviation(estimate)}<br>{settings_text(entry)}"
            )
            text += "<br>breaks a constraint" * (not epoch.keeps_constraints)
            yield _Point(
                entry.number,
                editor_of(entry),
                estimate,
                epoch.success,
                text,
                kept=epoch.keeps_constraints,
            )


def _answer_points(result: StudyResultRecord) -> Iterator[_Point]:
    for entry in result.entries:
        for epsilon in result.summary.epsilons:
            answer = answer_for(entry.record, epsilon, result.summary)
            # Where no epoch keeps the budget the answer is the base model: nothing to see.
            if answer is not None and answer.epoch is not None:
                estimate = answer.deviation.estimate
                text = answer_text(entry, answer)
                yield _Point(
                    entry.number,
                    editor_of(entry),
                    estimate,
                    answer.success,
                    text,
                    kept=answer.keeps_constraints,
                )


def _records(result: StudyResultRecord) -> Iterator[TrialRecord]:
    return (entry.record for entry in result.entries if entry.record is not None)
