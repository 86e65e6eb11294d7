"""What is left of the edits of a sequence as it grows."""

import plotly.graph_objects as go

from tuner.protocols.sequential import SequentialRecord
from tuner.report.figures._style import DASHES, FAINT, cycle, empty_figure, styles
from tuner.report.words import deviation


def retention(stream: SequentialRecord) -> go.Figure:
    """Return what is left of all edits so far, and of the rest, after each edit of a sequence."""
    figure = empty_figure(height=420)
    shown = stream.measured
    lines = {
        "all edits so far (retention)": [entry.retention for entry in shown],
        "their OOD rows": [entry.generalisation for entry in shown],
        "hard negatives and neighbours unchanged": [entry.unchanged for entry in shown],
    }
    numbers = [entry.number for entry in shown]
    text = [
        f"deviation {deviation(entry.deviation.estimate)}" if entry.deviation else ""
        for entry in shown
    ]
    for style, dash, (name, values) in zip(styles(), cycle(DASHES), lines.items(), strict=False):
        if all(value is None for value in values):
            continue
        figure.add_scatter(
            x=numbers,
            y=values,
            mode="lines+markers",
            name=name,
            line={"color": style[0], "dash": dash, "width": 2},
            marker={"symbol": style[1], "size": 7},
            text=text,
            hovertemplate="%{y:.3f} after %{x} edits, %{text}<extra></extra>",
        )
    made = [entry for entry in stream.entries if entry.applied]
    figure.add_scatter(
        x=[entry.number for entry in made],
        y=[entry.success for entry in made],
        mode="markers",
        name="the edit itself, at once",
        marker={"color": FAINT, "symbol": "line-ns-open", "size": 9},
        text=[entry.prompt for entry in made],
        hovertemplate="%{text}: %{y:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="edits, one after another", rangemode="tozero")
    figure.update_yaxes(title="share of rows", range=[-0.03, 1.03])
    return figure
