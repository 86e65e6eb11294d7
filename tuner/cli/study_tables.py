"""Tables of studies and their winners."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuner.cli.output import (
    make_table,
    show_certificate,
    show_deviation,
    show_divergence,
    show_interval,
    show_values,
)
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.trial.records import (
    StudyResultRecord,
    Winner,
)

# Narrower than this a table would break its numbers.
WIDE = 118
# Too long for a column.
_FACTS = "facts"
_METRICS = "metrics"
NOTHING_GAINED = (
    "No trial of {} gained anything within a budget: the base model itself is the answer for each."
)
_BELOW = ("success", _FACTS, _METRICS, "hyperparameters")


def print_winners(out: Console, record: StudyResultRecord) -> None:
    """Print the best edit for each budget, side by side where there is room."""
    summary = record.summary
    if not record.winners:
        out.print(NOTHING_GAINED.format(summary.name))
        return
    title = f"{summary.name}: best edit per budget ({summary.model}, rule {summary.rule.value})"
    if out.width >= WIDE:
        _print_side_by_side(out, title, record)
    else:
        _print_one_by_one(out, title, record)
    won = {winner.epsilon for winner in record.winners}
    lost = ", ".join(epsilon_name(epsilon) for epsilon in summary.epsilons if epsilon not in won)
    if lost:
        out.print(f"ε={lost}: no trial gained anything; the base model itself is the answer.")


def _print_side_by_side(out: Console, title: str, record: StudyResultRecord) -> None:
    winners = record.winners
    rows = [_winner_rows(winner, record.summary.metrics) for winner in winners]
    table = make_table(title, ("ε", *(key for key in rows[0] if key not in _BELOW)))
    for winner, facts in zip(winners, rows, strict=True):
        table.add_row(
            epsilon_name(winner.epsilon),
            *(value for key, value in facts.items() if key not in _BELOW),
        )
    out.print(table)
    for winner, facts in zip(winners, rows, strict=True):
        for key in (key for key in _BELOW if key in facts):
            out.print(
                Text.assemble((f"ε={epsilon_name(winner.epsilon)} {key}: ", "bold"), facts[key])
            )


def _print_one_by_one(out: Console, title: str, record: StudyResultRecord) -> None:
    out.print(title, style="bold")
    for winner in record.winners:
        out.print(f"\nε={epsilon_name(winner.epsilon)}", style="bold")
        grid = Table.grid(padding=(0, 2))
        for key, value in _winner_rows(winner, record.summary.metrics).items():
            grid.add_row(Text(key, style="dim"), value)
        out.print(grid)


def _winner_rows(winner: Winner, metrics: Sequence[str]) -> dict[str, str | Text]:
    """Return what is said about a winner, in the order of a reader's questions."""
    from tuner.evaluation.metrics import metric_label

    answer, kept = winner.validation, winner.seeds_within_budget
    exact = "" if answer.scores.exact is None else f", exact {answer.scores.exact:.3f}"
    constrained = winner.seeds_within_constraints
    further = "" if constrained is None else f", {constrained}/{len(winner.test)} the constraints"
    figures = answer.scores.fact_figures().items()
    told = ", ".join(f"{name.replace('_', ' ')} {share:.3f}" for name, share in figures)
    reported = ", ".join(
        f"{metric_label(name)} {value:.3f}"
        for name, value in answer.scores.reported(metrics).items()
    )
    return {
        "edit": f"#{winner.trial} {winner.editor}",
        "gain, validation": show_interval(answer.gain, answer.gain_interval),
        "gain, test": show_interval(winner.test_gain, winner.test_gain_interval),
        "seeds": "–" if kept is None else f"{kept}/{len(winner.test)} kept ε{further}",
        "deviation": show_deviation(winner.certificate.deviation),
        "divergence": show_divergence(winner.certificate.deviation),
        "certificate": show_certificate(winner.certificate),
        "success": f"{answer.success:.3f} on validation{exact}",
        **({_FACTS: told} if told else {}),
        **({_METRICS: reported} if reported else {}),
        "hyperparameters": show_values(_distinguishing(winner))
        + f"; epoch {answer.epoch}, α={answer.alpha:.2f}",
    }


def _distinguishing(winner: Winner) -> dict[str, Any]:
    """Return the hyperparameters that differ from the editor's defaults."""
    from tuner.editors import find_editor

    try:
        editor = find_editor(winner.editor).model_validate(winner.hyperparameters)
    except (ConfigError, ValidationError):
        # Of another version of tuner, or of an outsider's editor that is not here.
        return dict(winner.hyperparameters)
    return editor.model_dump(exclude_defaults=True)


def of_budget(record: StudyResultRecord, epsilon: float) -> StudyResultRecord:
    """Return what a study says of one budget."""
    winners = tuple(winner for winner in record.winners if winner.epsilon == epsilon)
    summary = record.summary.model_copy(update={"epsilons": (epsilon,)})
    return record.model_copy(update={"summary": summary, "winners": winners})
