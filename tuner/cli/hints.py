"""Hints about a task, told once where it is loaded."""

from pathlib import Path

from tuner.cli.output import messages
from tuner.editing.task import LossKind

# More would hide what the command itself says; `tuner check` has them all.
_SHOWN = 3


def tell_hints(task: str | Path, loss: LossKind) -> None:
    """Print the first hints about a task's rows on stderr."""
    from tuner.editing.task_hints import task_hints

    hints = task_hints(task, loss)
    for hint in hints[:_SHOWN]:
        messages().print(f"Hint: {hint}", style="yellow", soft_wrap=True)
    if len(hints) > _SHOWN:
        more = len(hints) - _SHOWN
        messages().print(f"Hint: {more} more; see `tuner check {task}`.", style="yellow")
