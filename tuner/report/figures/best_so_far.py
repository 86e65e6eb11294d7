"""The best gain so far, as the search went on."""

import plotly.graph_objects as go

from tuner.report.figures._answers import answer_for
from tuner.report.figures._style import COLOURS, DASHES, empty_figure
from tuner.report.words import epsilon_words, seconds_of
from tuner.trial.records import StudyResultRecord


def best_so_far(result: StudyResultRecord, *, over_time: bool) -> go.Figure:
    """Return the best gain found per budget, over finished trials or over compute time."""
    figure = empty_figure(height=340)
    done = sorted(
        (entry for entry in result.entries if entry.state.finished),
        key=lambda entry: (entry.finished.timestamp() if entry.finished else 0.0, entry.number),
    )
    total = sum(seconds_of(entry) for entry in done)
    unit, divisor = ("minutes", 60.0) if total >= 180 else ("seconds", 1.0)
    for index, epsilon in enumerate(result.summary.epsilons):
        x, y, spent, best = [0.0], [0.0], 0.0, 0.0
        for count, entry in enumerate(done, start=1):
            spent += seconds_of(entry)
            answer = answer_for(entry.record, epsilon, result.summary)
            best = max(best, answer.gain if answer and answer.keeps_constraints else 0.0)
            x.append(spent / divisor if over_time else float(count))
            y.append(best)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=f"ε = {epsilon_words(epsilon)}",
            line={
                "shape": "hv",
                "color": COLOURS[index % len(COLOURS)],
                "dash": DASHES[index % len(DASHES)],
                "width": 2.5,
            },
            hovertemplate="%{y:+.3f} after %{x:.4~g}<extra></extra>",
        )
    title = f"compute time of all trials together, {unit}" if over_time else "finished trials"
    figure.update_xaxes(title=title, rangemode="tozero")
    figure.update_yaxes(title="best validation gain", rangemode="tozero")
    return figure
