"""Writes the report: one file that needs nothing beside it and asks nothing of the network."""

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuner.errors import MissingExtra
from tuner.evaluation.deviation.budget import Divergence, Verdict
from tuner.files.atomic_file import write_text
from tuner.protocols.scaling import ScalingRow
from tuner.protocols.sequential import SequentialRecord
from tuner.report import words
from tuner.report.importance import importances, searched_names
from tuner.trial.records import StudyResultRecord, TrialEntry, TrialState, Winner


def write_report(result: StudyResultRecord, path: Path) -> Path:
    """Write the study's report to `path` and return it.

    Raises:
        MissingExtra: the packages that draw and lay out are not installed.
    """
    _require_packages()
    from tuner.report import figures

    importance = importances(result)
    plots = {
        "frontier": figures.frontier(result),
        "best-trials": figures.best_so_far(result, over_time=False),
        "best-time": figures.best_so_far(result, over_time=True),
    }
    if importance.rows:
        plots["importance"] = figures.importance_bars(importance)
    slices = figures.slices(result, importance)
    traces = figures.traces(result)
    plots |= {f"slice-{index}": figure for index, (_, figure) in enumerate(slices)}
    plots |= {f"trace-{index}": figure for index, (_, figure) in enumerate(traces)}
    page = _render(
        result,
        plots=plots,
        importance=importance,
        slices=[name for name, _ in slices],
        traces=[title for title, _ in traces],
    )
    return _write(path, page)


def write_figures(result: StudyResultRecord, folder: Path) -> tuple[Path, ...]:
    """Write the frontier and the best so far as pages of their own, and return their paths.

    Raises:
        MissingExtra: the packages that draw and lay out are not installed.
    """
    _require_packages()
    from tuner.report import figures

    shown = {
        "frontier": ("Success against deviation", figures.frontier(result)),
        "best_so_far": ("Best gain so far", figures.best_so_far(result, over_time=False)),
    }
    return tuple(
        _write_figure(folder / f"{name}.html", f"{title}: {result.summary.name}", figure)
        for name, (title, figure) in shown.items()
    )


def write_scaling(rows: Sequence[ScalingRow], title: str, path: Path) -> Path:
    """Write the curves of a scaling run as a page to `path` and return it.

    Raises:
        MissingExtra: the packages that draw and lay out are not installed.
    """
    _require_packages()
    from tuner.report import figures

    return _write_figure(path, title, figures.scaling_curves(rows))


def write_retention(stream: SequentialRecord, path: Path) -> Path:
    """Write the plot of a sequence's retention as a page of its own, and return its path.

    Raises:
        MissingExtra: the packages that draw and lay out are not installed.
    """
    _require_packages()
    from tuner.report import figures

    title = f"Retention: {stream.header.editor} on {stream.header.task}"
    return _write_figure(path, title, figures.retention(stream))


def _write_figure(path: Path, title: str, figure: Any) -> Path:
    page = _template("figure.html.j2").render(
        title=title, plot=_json(figure), plotly=_packed_plotly()
    )
    return _write(path, page)


def _require_packages() -> None:
    for package in ("plotly", "jinja2"):
        if find_spec(package) is None:
            raise MissingExtra(package, "report")


def _write(path: Path, page: str) -> Path:
    write_text(path, page)
    return path


def _render(
    result: StudyResultRecord,
    *,
    plots: dict[str, Any],
    importance: Any,
    slices: list[str],
    traces: list[str],
) -> str:
    entries = result.entries
    base = next((e.record.base for e in entries if e.record and e.record.base), None)
    states = {state: sum(entry.state is state for entry in entries) for state in TrialState}
    return str(
        _template("report.html.j2").render(
            summary=result.summary,
            winners=result.winners,
            entries=entries,
            leaders=_leaders(result),
            base=base,
            states=states,
            failed=[entry for entry in entries if entry.state is TrialState.FAILED],
            headline=_headline(result),
            test_seeds=sorted({test.seed for w in result.winners for test in w.test}),
            trial_seeds=sorted({entry.record.seed for entry in entries if entry.record}),
            compute=sum(words.seconds_of(entry) for entry in entries),
            answer_of=_answer_of(result),
            importance=importance,
            searched=searched_names(result),
            slices=slices,
            traces=traces,
            plots={name: _json(figure) for name, figure in plots.items()},
            plotly=_packed_plotly(),
            words=words,
        )
    )


def _headline(result: StudyResultRecord) -> str:
    target = result.summary.target_epsilon
    winner = next((won for won in result.winners if won.epsilon == target), None)
    at = f"ε = {words.epsilon_words(target)}"
    if winner is None:
        if not result.winners:
            return f"Not finished yet: nothing has been selected at {at}."
        return f"No edit that keeps {at} beats the untouched base model."
    return (
        f"At {at} the best edit is {winner.editor} (trial {winner.trial}): "
        f"{_tested(winner)}. {_certified(winner)}"
    )


def _tested(winner: Winner) -> str:
    validation = f"gain {words.gain(winner.validation.gain)} on the validation split"
    if winner.test_gain is None:
        return f"{validation}, not tested yet"
    seeds = f"{len(winner.test)} seed" + ("s" if len(winner.test) != 1 else "")
    return f"gain {words.gain(winner.test_gain)} on the test split over {seeds} ({validation})"


def _certified(winner: Winner) -> str:
    measured = winner.certificate.deviation
    return (
        f"On fresh text its deviation is {words.deviation(measured.estimate)}: "
        f"the budget {_BUDGET_WORDS[winner.certificate.verdict]}." + _diverged(measured.divergence)
    )


def _diverged(divergence: Divergence | None) -> str:
    """Return how far predictions moved; the loss alone cannot tell, since it may rise and fall."""
    if divergence is None:
        return ""
    limit = "" if divergence.limit is None else f" (at most {divergence.limit:.1e} allowed)"
    return f" Its predictions moved by {divergence.estimate:.1e} nats per token{limit}."


_BUDGET_WORDS = {
    Verdict.WITHIN: "is kept",
    Verdict.OVER: "is exceeded",
    Verdict.UNRESOLVED: "can be neither confirmed nor refuted",
}


def _leaders(result: StudyResultRecord) -> list[tuple[float, TrialEntry | None]]:
    """Return the best validated trial per budget, for a study that has no winners yet."""
    answer_of = _answer_of(result)
    leaders: list[tuple[float, TrialEntry | None]] = []
    for epsilon in result.summary.epsilons:
        answers = [
            (answer.gain, -entry.number, entry)
            for entry in result.entries
            if (answer := answer_of(entry, epsilon)) is not None
            and answer.epoch is not None
            and answer.keeps_constraints
        ]
        leaders.append((epsilon, max(answers, key=lambda item: item[:2])[2] if answers else None))
    return leaders


def _answer_of(result: StudyResultRecord) -> Any:
    def answer_of(entry: TrialEntry, epsilon: float) -> Any:
        try:
            return entry.record.answer(epsilon, result.summary.rule) if entry.record else None
        except KeyError:
            return None

    return answer_of


def _template(name: str) -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _json(figure: Any) -> str:
    """Return a figure as JSON that cannot end the script element it stands in."""
    return str(figure.to_json()).replace("<", "\\u003c").replace("&", "\\u0026")


@cache
def _packed_plotly() -> str:
    """Return plotly's script, compressed: a report of 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()
