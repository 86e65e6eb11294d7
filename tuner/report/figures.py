"""The report's plots. Colours and shapes say the same thing twice, so either is enough."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tuner.protocols.scaling import Estimate, ScalingRow
from tuner.protocols.sequential import SequentialRecord
from tuner.report.importance import Importances, searched_names
from tuner.report.words import (
    deviation,
    editor_of,
    epsilon_words,
    gain,
    limits,
    seconds_of,
    setting,
    settings,
    share,
)
from tuner.trial.records import (
    Answer,
    StudyResultRecord,
    StudySummary,
    TrialEntry,
    TrialRecord,
    TrialState,
    Winner,
)

# Okabe and Ito's colours: told apart by all common kinds of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHAPES = ("circle", "diamond", "square", "triangle-up", "cross", "hexagon", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
_INK, _FAINT, _BAND = "#1a1a1a", "#8a8a8a", "#f1efe8"

# Whatever lies this far under the strictest budget is told apart by noise alone.
_DECADES_UNDER_BUDGET = 2
_MOST_SLICES = 12


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
    figure = _figure(height=520)
    epochs, answers = list(_epoch_points(result)), list(_answer_points(result))
    if not epochs and not answers:
        return figure
    axis = _DeviationAxis(result.summary, [p.deviation for p in (*epochs, *answers)])
    axis.draw_band(figure)
    axis.draw_budgets(figure)
    for style, name in zip(_styles(), _editors(result), strict=False):
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
            "line": {"color": _INK, "width": 1},
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
        line={"color": _INK, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    _draw_winners(figure, result.winners, axis)
    base = next((r.base for r in _records(result) if r.base is not None), None)
    if base is not None:
        figure.add_hline(
            y=base.success,
            line={"color": _FAINT, "width": 1, "dash": "dot"},
            annotation_text=f"base {share(base.success)}",
            annotation_position="bottom right",
            annotation_font_color="#555",
        )
    figure.update_xaxes(axis.settings())
    figure.update_yaxes(title="success", rangemode="tozero")
    return figure


def best_so_far(result: StudyResultRecord, *, over_time: bool) -> go.Figure:
    """Return the best gain found per budget, over finished trials or over compute time."""
    figure = _figure(height=340)
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
            answer = _answer(entry.record, epsilon, result.summary)
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
                "color": _COLOURS[index % len(_COLOURS)],
                "dash": _DASHES[index % len(_DASHES)],
                "width": 2.5,
            },
            hovertemplate="%{y:+.3f} after %{x:.4~g}<extra></extra>",
        )
    title = f"compute time of all trials together, {unit}" if over_time else "finished trials"
    figure.update_xaxes(title=title, rangemode="tozero")
    figure.update_yaxes(title="best validation gain", rangemode="tozero")
    return figure


def importance_bars(found: Importances) -> go.Figure:
    """Return the importances with one standard deviation to either side."""
    rows = list(reversed(found.rows))
    figure = _figure(height=110 + 34 * len(rows))
    figure.add_bar(
        x=[row.mean for row in rows],
        y=[row.name.replace("_", " ") for row in rows],
        orientation="h",
        marker={"color": _COLOURS[0]},
        error_x={
            "type": "data",
            "array": [row.high - row.mean for row in rows],
            "color": _INK,
            "thickness": 1.2,
        },
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )
    figure.update_xaxes(title="rise in error when shuffled", zeroline=True)
    figure.update_yaxes(automargin=True)
    figure.update_layout(showlegend=False)
    return figure


def slices(result: StudyResultRecord, found: Importances) -> list[tuple[str, go.Figure]]:
    """Return per searched hyperparameter, the important first, success against its value."""
    ranks = {row.name: rank for rank, row in enumerate(found.rows)}
    names = [name for name in searched_names(result) if name != "editor"]
    names.sort(key=lambda name: ranks.get(name, len(ranks)))
    return [(name, _slice(result, name)) for name in names[:_MOST_SLICES]]


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
    success, drift = _figure(height=340), _figure(height=380)
    records = {number: by_number[number].record for number in shown}
    every = [e.deviation.estimate for r in records.values() if r is not None for e in r.epochs]
    axis = _DeviationAxis(result.summary, every)
    for style, dash, (number, won) in zip(_styles(), _cycle(_DASHES), shown.items(), strict=False):
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


def scaling_curves(rows: Sequence[ScalingRow]) -> go.Figure:
    """Return ES, DD and ES − DD over the number of simultaneous edits, a curve per editor."""
    panels: list[tuple[str, list[tuple[ScalingRow, Estimate]]]] = [
        ("edit success (ES)", [(row, row.success) for row in rows]),
        ("drawdown (DD)", [(row, row.drawdown) for row in rows if row.drawdown]),
        ("ES − DD", [(row, row.difference) for row in rows if row.difference]),
    ]
    panels = [(title, found) for title, found in panels if found]
    figure = _figure(height=80 + 300 * len(panels))
    figure.set_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    editors = list(dict.fromkeys(row.editor for row in rows))
    for panel, (title, found) in enumerate(panels, start=1):
        for style, dash, editor in zip(_styles(), _cycle(_DASHES), editors, strict=False):
            mine = [(row, value) for row, value in found if row.editor == editor]
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
    return _plain(
        f"{row.editor}, {row.edits} edits<br>{title} {share(value.mean)}{span}<br>{draws}"
    )


def retention(stream: SequentialRecord) -> go.Figure:
    """Return what is left of all edits so far, and of the rest, after each edit of a sequence."""
    figure = _figure(height=420)
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
    for style, dash, (name, values) in zip(_styles(), _cycle(_DASHES), lines.items(), strict=False):
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
        marker={"color": _FAINT, "symbol": "line-ns-open", "size": 9},
        text=[entry.prompt for entry in made],
        hovertemplate="%{text}: %{y:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="edits, one after another", rangemode="tozero")
    figure.update_yaxes(title="share of rows", range=[-0.03, 1.03])
    return figure


class _DeviationAxis:
    """A logarithmic axis with a band at its low end for what a logarithm cannot show.

    Measured deviations are often negative or as good as zero. They are drawn inside the band, all
    at one place, and keep their true value in the text under the pointer.
    """

    def __init__(self, summary: StudySummary, values: list[float]) -> None:
        finite = [value for value in values if math.isfinite(value)]
        self._budgets = summary.epsilons
        self._floor = 10.0 ** (
            math.floor(math.log10(min(summary.epsilons))) - _DECADES_UNDER_BUDGET
        )
        self._top = max([2 * max(summary.epsilons), *(1.5 * value for value in finite)])
        self._within_band = self._floor * 10**-0.5
        self._bottom = self._floor * 0.1

    def place(self, value: float) -> float | None:
        """Return where a deviation is drawn."""
        if not math.isfinite(value):
            return None
        return value if value > self._floor else self._within_band

    @property
    def edge(self) -> float:
        """The low end of the axis."""
        return self._bottom

    @property
    def top(self) -> float:
        """The high end of the axis."""
        return self._top

    def settings(self) -> dict[str, Any]:
        """Return the axis in plotly's words."""
        low, high = math.floor(math.log10(self._floor)), math.ceil(math.log10(self._top))
        ticks = [10.0**power for power in range(low, high + 1)]
        return {
            "type": "log",
            "range": [math.log10(self._bottom), math.log10(self._top)],
            "title": "deviation",
            "tickvals": [self._within_band, *ticks],
            "ticktext": ["≲ 0", "", *(epsilon_words(tick) for tick in ticks[1:])],
            "tickangle": 0,
        }

    def draw_band(self, figure: go.Figure, *, horizontal: bool = False) -> None:
        """Shade the place of what is about zero or negative."""
        low, high = self._bottom, self._floor
        draw = figure.add_hrect if horizontal else figure.add_vrect
        ends = {"y0": low, "y1": high} if horizontal else {"x0": low, "x1": high}
        draw(**ends, fillcolor=_BAND, line_width=0, layer="below")

    def draw_budgets(self, figure: go.Figure, *, horizontal: bool = False) -> None:
        """Draw a line with a label at every budget."""
        for epsilon in self._budgets:
            line = {"color": _INK, "width": 1, "dash": "dash"}
            label = f"ε = {epsilon_words(epsilon)}"
            if horizontal:
                figure.add_hline(y=epsilon, line=line)
                place = {"x": 1, "xref": "paper", "y": math.log10(epsilon), "yanchor": "bottom"}
                figure.add_annotation(text=label, showarrow=False, xanchor="right", **place)
            else:
                figure.add_vline(x=epsilon, line=line)
                place = {"x": math.log10(epsilon), "y": 1, "yref": "paper", "yanchor": "bottom"}
                figure.add_annotation(text=label, showarrow=False, xanchor="center", **place)


def _figure(height: int) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="simple_white",
        height=height,
        margin={"l": 56, "r": 14, "t": 30, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        # At the figure's foot, not the axes': there it pushes the plot up and covers no title.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    looks = {"showgrid": True, "gridcolor": "#ececec", "title_font_size": 13}
    figure.update_xaxes(title_standoff=8, **looks)
    figure.update_yaxes(title_standoff=6, **looks)
    return figure


def _slice(result: StudyResultRecord, name: str) -> go.Figure:
    figure = _figure(height=300)
    summary = result.summary
    tried = [entry for entry in result.entries if name in entry.parameters]
    for style, editor in zip(_styles(), _editors(result), strict=False):
        found = [
            (entry, answer)
            for entry in tried
            if editor_of(entry) == editor
            and (answer := _answer(entry.record, summary.target_epsilon, summary)) is not None
        ]
        if not found:
            continue
        figure.add_scatter(
            x=[_coordinate(entry.parameters[name]) for entry, _ in found],
            y=[answer.success for _, answer in found],
            mode="markers",
            name=editor,
            marker={"color": style[0], "symbol": style[1], "size": 8, "opacity": 0.75},
            text=[_answer_text(entry, answer) for entry, answer in found],
            hovertemplate="%{text}<extra></extra>",
        )
    failed = [entry for entry in tried if entry.state is TrialState.FAILED]
    if failed:
        figure.add_scatter(
            x=[_coordinate(entry.parameters[name]) for entry in failed],
            y=[0.0 for _ in failed],
            mode="markers",
            name="failed",
            marker={"color": _INK, "symbol": "x-thin", "size": 9, "line": {"width": 2}},
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


def _draw_winners(figure: go.Figure, winners: tuple[Winner, ...], axis: _DeviationAxis) -> None:
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
            "line": {"color": _INK, "width": 1.2},
        },
        text=[
            f"best at ε = {epsilon_words(winner.epsilon)}: trial {winner.trial}<br>"
            f"success {share(winner.validation.success)}, gain {gain(winner.validation.gain)}<br>"
            f"deviation {deviation(winner.validation.deviation.estimate)}"
            for winner in winners
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _envelope(points: list[_Point], axis: _DeviationAxis) -> list[tuple[float, float]]:
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
                f"<br>deviation {deviation(estimate)}<br>{_settings_text(entry)}"
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
            answer = _answer(entry.record, epsilon, result.summary)
            # Where no epoch keeps the budget the answer is the base model: nothing to see.
            if answer is not None and answer.epoch is not None:
                estimate = answer.deviation.estimate
                text = _answer_text(entry, answer)
                yield _Point(
                    entry.number,
                    editor_of(entry),
                    estimate,
                    answer.success,
                    text,
                    kept=answer.keeps_constraints,
                )


def _answer_text(entry: TrialEntry, answer: Answer) -> str:
    where = f"epoch {answer.epoch}, α = {answer.alpha:.2f}" if answer.epoch else "the base model"
    return (
        f"trial {entry.number} at ε = {epsilon_words(answer.epsilon)}<br>{where}<br>"
        f"success {share(answer.success)}, gain {gain(answer.gain)}<br>"
        f"deviation {deviation(answer.deviation.estimate)}<br>"
        f"{_broken_text(answer)}{_settings_text(entry)}"
    )


def _broken_text(answer: Answer) -> str:
    return "" if answer.keeps_constraints else f"breaks {limits(answer.violations)}<br>"


def _settings_text(entry: TrialEntry) -> str:
    lines = [f"{name} {value}" for name, value in settings(entry.parameters)]
    return _plain("<br>".join([editor_of(entry), *lines][:9]))


def _plain(text: str) -> str:
    """Return text in which plotly sees no markup but our line breaks."""
    parts = (part.replace("&", "&amp;").replace("<", "&lt;") for part in text.split("<br>"))
    return "<br>".join(parts)


def _records(result: StudyResultRecord) -> Iterator[TrialRecord]:
    return (entry.record for entry in result.entries if entry.record is not None)


def _answer(record: TrialRecord | None, epsilon: float, summary: StudySummary) -> Answer | None:
    if record is None:
        return None
    try:
        return record.answer(epsilon, summary.rule)
    except KeyError:
        return None


def _editors(result: StudyResultRecord) -> list[str]:
    return sorted({editor_of(entry) for entry in result.entries})


def _styles() -> Iterator[tuple[str, str]]:
    return zip(_cycle(_COLOURS), _cycle(_SHAPES), strict=False)


def _cycle(items: tuple[str, ...]) -> Iterator[str]:
    while True:
        yield from items
