"""Numbers and names as the report writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.evaluation.deviation.budget import Deviation, epsilon_label
from tuner.evaluation.metrics import metric_label
from tuner.evaluation.scores import HEADLINE_METRICS, Interval, Scores
from tuner.trial.records import SeedResult, TrialEntry


def epsilon_words(epsilon: float) -> str:
    """Return a budget as people write it: 1e-4."""
    mantissa, exponent = epsilon_label(epsilon).removeprefix("eps_").split("e")
    return f"{mantissa}e{int(exponent)}"


def share(value: float) -> str:
    """Return a share of rows."""
    return f"{value:.3f}"


def fact_figures(scores: Scores) -> list[tuple[str, str]]:
    """Return the published figures of a fact edit or a memory by name; none for other tasks."""
    return [(name.replace("_", " "), share(value)) for name, value in scores.fact_figures().items()]


def reported(scores: Scores, metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Return the figures that the study asked for beside the usual ones, by their labels."""
    return [(metric_label(name), share(value)) for name, value in scores.reported(metrics).items()]


def fact_names(tests: Sequence[SeedResult], metrics: Sequence[str] = ()) -> list[str]:
    """Return the names of all figures that one seed or another has, in their order."""
    had = {name for test in tests for name in test.answer.scores.fact_figures()}
    asked_for = {name: None for test in tests for name in test.answer.scores.reported(metrics)}
    return [*(name for name in HEADLINE_METRICS if name in had), *asked_for]


def fact_heads(names: Sequence[str]) -> list[str]:
    """Return how a table calls these figures."""
    return [
        name.replace("_", " ") if name in HEADLINE_METRICS else metric_label(name) for name in names
    ]


def fact_cells(scores: Scores, names: Sequence[str]) -> list[str]:
    """Return one cell per name; the base model, as an answer, has no figure of a memory."""
    figures = scores.figures()
    return [share(figures[name]) if name in figures else "–" for name in names]


def gain(value: float) -> str:
    """Return a gain with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def gain_range(interval: Interval | None) -> str:
    """Return a gain's interval, or nothing where there is none."""
    if interval is None:
        return ""
    return f"{gain(interval.low)} to {gain(interval.high)} ({interval.confidence:.0%})"


def deviation(value: float) -> str:
    """Return a deviation to three digits."""
    return f"{value:.2e}".replace("-", "−", 1) if value < 0 else f"{value:.2e}"


def deviation_range(measured: Deviation) -> str:
    """Return what a deviation was bounded by, and on how much text."""
    return (
        f"{deviation(measured.lower)} to {deviation(measured.upper)} "
        f"({measured.confidence:.0%}, {tokens(measured.tokens)} tokens)"
    )


def limits(violations: Mapping[str, float]) -> str:
    """Return the constraints that are broken, each with by how much of its limit; or "kept"."""
    broken = [f"{name} by {value:.0%}" for name, value in violations.items() if value > 0]
    return ", ".join(broken) or "kept"


def tokens(count: int) -> str:
    """Return a number of tokens with a thin space between thousands."""
    return f"{count:,}".replace(",", "\u202f")


def seconds(value: float) -> str:
    """Return a duration in the unit that suits it."""
    if value < 90:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def setting(value: Any) -> str:
    """Return a hyperparameter's value, floats to four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return str(value)


def settings(hyperparameters: dict[str, Any]) -> list[tuple[str, str]]:
    """Return hyperparameters as pairs of words, without the editor, which is shown beside them."""
    return [
        (name.replace("_", " "), setting(value))
        for name, value in hyperparameters.items()
        if name != "editor"
    ]


def among(hyperparameters: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the hyperparameters that are named, in the order of the names."""
    return {name: hyperparameters[name] for name in names if name in hyperparameters}


def besides(hyperparameters: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the hyperparameters that are not named."""
    return {name: value for name, value in hyperparameters.items() if name not in names}


def editor_of(entry: TrialEntry) -> str:
    """Return the editor of a trial, whether it has ended or not."""
    if entry.record is not None:
        return entry.record.editor
    return str(entry.parameters.get("editor", "?"))


def seconds_of(entry: TrialEntry) -> float:
    """Return how long a trial worked."""
    if entry.record is not None and entry.record.seconds:
        return sum(entry.record.seconds.values())
    if entry.started and entry.finished:
        return (entry.finished - entry.started).total_seconds()
    return 0.0
