"""Names that verbs had before; they work for one release, and say the new name."""

import functools
from collections.abc import Callable

import typer

from tuner.cli.output import messages


def add_old_name(app: typer.Typer, old: str, new: str, verb: Callable[..., None]) -> None:
    """Let a verb answer to its old name too, hidden from `--help`."""

    @functools.wraps(verb)
    def renamed(*arguments: object, **options: object) -> None:
        messages().print(f"`tuner {old}` is called `tuner {new}` now.", soft_wrap=True)
        verb(*arguments, **options)

    app.command(old, hidden=True)(renamed)
