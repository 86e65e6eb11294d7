"""Names that verbs and options had before; they work for one release, and say the new name."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from tuner.cli.output import messages

_Value = TypeVar("_Value")


def add_old_name(app: typer.Typer, old: str, new: str, verb: Callable[..., None]) -> None:
    """Let a verb answer to its old name too, hidden from `--help`."""

    @functools.wraps(verb)
    def renamed(*arguments: object, **options: object) -> None:
        messages().print(f"`tuner {old}` is called `tuner {new}` now.", soft_wrap=True)
        verb(*arguments, **options)

    app.command(old, hidden=True)(renamed)


def old_option(*old: str, new: str) -> Any:
    """Return an option's old name, hidden from `--help`; its value is added to the new one's."""

    def tell(value: _Value) -> _Value:
        if value:
            messages().print(f"`{old[0]}` is called `{new}` here now.", soft_wrap=True)
        return value

    return typer.Option(*old, hidden=True, callback=tell)
