"""The axis of deviations: logarithmic, with a place for what is about zero."""

import math
from typing import Any

import plotly.graph_objects as go

from tuner.report.figures._style import BAND, INK
from tuner.report.words import epsilon_words
from tuner.trial.records import StudySummary

# Whatever lies this far under the strictest budget is told apart by noise alone.
_DECADES_UNDER_BUDGET = 2


class DeviationAxis:
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
        draw(**ends, fillcolor=BAND, line_width=0, layer="below")

    def draw_budgets(self, figure: go.Figure, *, horizontal: bool = False) -> None:
        """Draw a line with a label at every budget."""
        for epsilon in self._budgets:
            line = {"color": INK, "width": 1, "dash": "dash"}
            label = f"ε = {epsilon_words(epsilon)}"
            if horizontal:
                figure.add_hline(y=epsilon, line=line)
                place = {"x": 1, "xref": "paper", "y": math.log10(epsilon), "yanchor": "bottom"}
                figure.add_annotation(text=label, showarrow=False, xanchor="right", **place)
            else:
                figure.add_vline(x=epsilon, line=line)
                place = {"x": math.log10(epsilon), "y": 1, "yref": "paper", "yanchor": "bottom"}
                figure.add_annotation(text=label, showarrow=False, xanchor="center", **place)
