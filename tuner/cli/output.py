"""What the terminal shows: tables for people, one JSON document for programs."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuner.evaluation.deviation.budget import Certificate, Deviation, Verdict
from tuner.evaluation.scores import HEADLINE_METRICS, Interval

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of tables.")
]


def console() -> Console:
    """Return the terminal for results."""
    return Console(highlight=False, markup=False)


def messages() -> Console:
    """Return the terminal for everything that is not a result."""
    return Console(stderr=True, highlight=False, markup=False)


def complain(message: str) -> None:
    """Tell the user what went wrong."""
    text = Text.assemble(("Error: ", "bold red"), message)
    messages().print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON; records become objects, and nothing is printed as NaN."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    match value:
        case BaseModel():
            return _plain(value.model_dump(mode="json"))
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def make_table(title: str, columns: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """Return an empty table; the columns in `right` hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def show_interval(value: float | None, interval: Interval | None) -> str:
    """Return a gain with its interval, in percentage points of rows."""
    if value is None:
        return "–"
    bounds = "" if interval is None else f" [{interval.low:+.2f}, {interval.high:+.2f}]"
    return f"{value:+.3f}{bounds}"


def show_share(value: float | None) -> str:
    """Return a share of rows."""
    return "–" if value is None else f"{value:.3f}"


FACTS_HEADING = " / ".join(HEADLINE_METRICS[:3])


def show_facts(figures: Mapping[str, float]) -> str:
    """Return the three published figures of a fact edit, in the order of `FACTS_HEADING`."""
    return " / ".join(show_share(figures.get(name)) for name in HEADLINE_METRICS[:3])


def show_deviation(deviation: Deviation) -> str:
    """Return a deviation with its standard error."""
    return f"{deviation.estimate:+.1e} ± {deviation.standard_error:.0e}"


def show_divergence(deviation: Deviation) -> str:
    """Return the divergence that was measured beside a deviation, with its limit if it has one."""
    measured = deviation.divergence
    if measured is None:
        return "–"
    limit = "" if measured.limit is None else f" of {measured.limit:.0e}"
    return f"{measured.estimate:.1e}{limit}"


def show_violations(violations: Mapping[str, float]) -> str:
    """Return whether the constraints are kept, or which are broken, by how much of their limit."""
    broken = [f"{name} +{value:.0%}" for name, value in violations.items() if value > 0]
    return ("broken: " + ", ".join(broken)) if broken else "kept"


def show_certificate(certificate: Certificate | None) -> Text:
    """Return what fresh text says."""
    if certificate is None:
        return Text("none", style="dim")
    style = {Verdict.WITHIN: "green", Verdict.OVER: "red", Verdict.UNRESOLVED: "yellow"}
    deviation = certificate.deviation
    return Text.assemble(
        (certificate.verdict.value, style[certificate.verdict]),
        f" at {deviation.confidence:.1%}, {deviation.tokens / 1000:,.0f}k tokens",
    )


def show_values(values: Mapping[str, Any]) -> str:
    """Return hyperparameters on one line."""
    return ", ".join(f"{key}={show_value(value)}" for key, value in values.items())


def show_value(value: Any) -> str:
    """Return a hyperparameter, shortly."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_seconds(seconds: float | None) -> str:
    """Return a duration as minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
