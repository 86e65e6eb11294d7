"""How all figures look. Colours and shapes say the same thing twice, so either is enough."""

from collections.abc import Iterator

import plotly.graph_objects as go

# Okabe and Ito's colours: told apart by all common kinds of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHAPES = ("circle", "diamond", "square", "triangle-up", "cross", "hexagon", "x")
DASHES = ("solid", "dash", "dot", "dashdot")
INK, FAINT, BAND = "#1a1a1a", "#8a8a8a", "#f1efe8"


def empty_figure(height: int) -> go.Figure:
    """Return a figure without data, in the report's style."""
    figure = go.Figure()
    figure.update_layout(
        template="simple_white",
        height=height,
        margin={"l": 56, "r": 14, "t": 30, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        # At the figure's foot, not the axes': there it pushes the plot up and covers no title.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    looks = {"showgrid": True, "gridcolor": "#ececec", "title_font_size": 13}
    figure.update_xaxes(title_standoff=8, **looks)
    figure.update_yaxes(title_standoff=6, **looks)
    return figure


def styles() -> Iterator[tuple[str, str]]:
    """Yield colours with shapes, endlessly."""
    return zip(cycle(COLOURS), cycle(_SHAPES), strict=False)


def cycle(items: tuple[str, ...]) -> Iterator[str]:
    """Yield the items again and again."""
    while True:
        yield from items


def plain(text: str) -> str:
    """Return text in which plotly sees no markup but our line breaks."""
    parts = (part.replace("&", "&amp;").replace("<", "&lt;") for part in text.split("<br>"))
    return "<br>".join(parts)
