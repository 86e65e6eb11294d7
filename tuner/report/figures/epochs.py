"""Success and deviation of the winners' trials, epoch by epoch."""

import plotly.graph_objects as go

from tuner.report.figures._deviation_axis import DeviationAxis
from tuner.report.figures._style import DASHES, cycle, empty_figure, styles
from tuner.report.words import deviation, epsilon_words
from tuner.trial.records import StudyResultRecord, Winner


def traces(result: StudyResultRecord) -> list[tuple[str, go.Figure]]:
    """Return success and deviation of every winner's trial, epoch by epoch."""
    by_number = {entry.number: entry for entry in result.entries}
    shown: dict[int, list[Winner]] = {}
    for winner in result.winners:
        record = by_number[winner.trial].record if winner.trial in by_number else None
        if record is not None and record.epochs:
            shown.setdefault(winner.trial, []).append(winner)
    if not shown:
        return []
    success, drift = empty_figure(height=340), empty_figure(height=380)
    records = {number: by_number[number].record for number in shown}
    every = [e.deviation.estimate for r in records.values() if r is not None for e in r.epochs]
    axis = DeviationAxis(result.summary, every)
    for style, dash, (number, won) in zip(styles(), cycle(DASHES), shown.items(), strict=False):
        record = records[number]
        epochs = record.epochs if record is not None else ()
        name = f"trial {number}, best at " + ", ".join(epsilon_words(w.epsilon) for w in won)
        looks = {
            "mode": "lines+markers",
            "name": name,
            "line": {"color": style[0], "dash": dash, "width": 2},
            "marker": {"symbol": style[1], "size": 8},
        }
        x = [epoch.epoch for epoch in epochs]
        figure_y = [epoch.success for epoch in epochs]
        success.add_scatter(x=x, y=figure_y, hovertemplate="%{y:.3f}<extra></extra>", **looks)
        drift.add_scatter(
            x=x,
            y=[axis.place(epoch.deviation.estimate) for epoch in epochs],
            text=[deviation(epoch.deviation.estimate) for epoch in epochs],
            hovertemplate="%{text}<extra></extra>",
            **looks,
        )
    axis.draw_budgets(drift, horizontal=True)
    axis.draw_band(drift, horizontal=True)
    success.update_yaxes(title="success", rangemode="tozero")
    drift.update_yaxes(axis.settings())
    for figure in (success, drift):
        figure.update_xaxes(title="epoch (unscaled edit)", dtick=1 if len(x) <= 12 else None)
    return [("Success of the winners' trials", success), ("Deviation of the same trials", drift)]
