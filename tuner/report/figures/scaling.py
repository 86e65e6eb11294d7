"""Scores over the number of simultaneous edits."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from tuner.protocols.scaling import Estimate, ScalingRow
from tuner.report.figures._style import DASHES, cycle, empty_figure, plain, styles
from tuner.report.words import share


def scaling_curves(rows: Sequence[ScalingRow]) -> go.Figure:
    """Return ES, DD and ES − DD over the number of simultaneous edits, a curve per editor."""
    panels: list[tuple[str, list[tuple[ScalingRow, Estimate]]]] = [
        ("edit success (ES)", [(row, row.success) for row in rows]),
        ("drawdown (DD)", [(row, row.drawdown) for row in rows if row.drawdown]),
        ("ES − DD", [(row, row.difference) for row in rows if row.difference]),
    ]
    panels = [(title, points) for title, points in panels if points]
    figure = empty_figure(height=80 + 300 * len(panels))
    figure.set_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    editors = list(dict.fromkeys(row.editor for row in rows))
    for panel, (title, points) in enumerate(panels, start=1):
        for style, dash, editor in zip(styles(), cycle(DASHES), editors, strict=False):
            mine = [(row, value) for row, value in points if row.editor == editor]
            figure.add_scatter(
                row=panel,
                col=1,
                x=[row.edits for row, _ in mine],
                y=[value.mean for _, value in mine],
                error_y=_error_bars([value for _, value in mine]),
                mode="lines+markers",
                name=editor,
                legendgroup=editor,
                showlegend=panel == 1,
                line={"color": style[0], "dash": dash, "width": 2},
                marker={"symbol": style[1], "size": 8},
                text=[_scaling_text(title, row, value) for row, value in mine],
                hovertemplate="%{text}<extra></extra>",
            )
        figure.update_yaxes(title=title, row=panel, col=1)
    counts = sorted({row.edits for row in rows})
    figure.update_xaxes(type="log", tickvals=counts, showgrid=True, gridcolor="#ececec")
    figure.update_yaxes(showgrid=True, gridcolor="#ececec", title_font_size=13)
    figure.update_xaxes(title="simultaneous edits", row=len(panels), col=1)
    return figure


def _error_bars(values: list[Estimate]) -> dict[str, Any]:
    """Return the intervals in plotly's words; none is drawn where there is none."""
    ends = [(value.mean, value.interval) for value in values]
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - mean if interval else 0.0 for mean, interval in ends],
        "arrayminus": [mean - interval.low if interval else 0.0 for mean, interval in ends],
        "thickness": 1.2,
    }


def _scaling_text(title: str, row: ScalingRow, value: Estimate) -> str:
    interval = value.interval
    span = f" ({share(interval.low)} to {share(interval.high)})" if interval else ""
    draws = f"{row.draws} draws" + (f", {row.failed} failed" if row.failed else "")
    return plain(f"{row.editor}, {row.edits} edits<br>{title} {share(value.mean)}{span}<br>{draws}")
