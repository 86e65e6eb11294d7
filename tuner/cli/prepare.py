"""The verb that takes, once, what all trials on a model and a text share."""

from typing import Annotated

import typer

from tuner.cli.options import (
    BlockLengthOption,
    DeviceOption,
    DtypeOption,
    GeneralOption,
    GeneralTokensOption,
)
from tuner.cli.output import JsonFlag, console, messages, print_json, show_seconds
from tuner.cli.values import read_model, read_tokens


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Example: `tuner prepare my-model --general my-text.jsonl "
        "--general-tokens gradient=400000`"
    )(prepare)


def prepare(
    model: Annotated[str, typer.Argument(help="builtin:NAME, a local folder or a hub id.")],
    general: GeneralOption = None,
    general_tokens: GeneralTokensOption = None,
    block_length: BlockLengthOption = None,
    space: Annotated[
        str, typer.Option("--space", "-s", help="The space whose editors it is for.")
    ] = "lora",
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Take the mean gradient, base losses and statistics that all trials share.

    A search takes what it misses by itself, from less text. The more text the gradient has seen,
    the smaller the budgets that can be decided. Run the same command again to go on after a stop.
    """
    amounts = read_tokens(general_tokens)
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from tuner.editing.corpus import load_general_text
    from tuner.files.cache import Cache, cache_folder
    from tuner.search.space_file import load_space
    from tuner.trial.prepare import prepare as take

    editors = {branch.editor for branch in load_space(space).branches}
    base = read_model(model, dtype, device)
    text = load_general_text(general, base, block_length=block_length, tokens=amounts)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages(), transient=True) as progress:
        bars: dict[str, int] = {}

        def follow(what: str, read: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=read)  # type: ignore[arg-type]

        taken = take(base, text, editors, Cache(cache_folder()), follow)
    if json_:
        print_json(taken)
        return
    out = console()
    for what, seconds in taken.seconds.items():
        out.print(f"{what}: {show_seconds(seconds)}")
    out.print(
        f"{taken.gradient_tokens:,} tokens for the gradient of {taken.weights:,} weights, "
        f"{taken.search_tokens:,} to search on, {taken.confirmation_tokens:,} to confirm on, in "
        f"blocks of {taken.block_length}.",
        soft_wrap=True,
    )
    out.print(
        f"Rule of thumb: most edits at 0.7 ε are certified for ε ≥ {taken.decides:.0e}; without "
        f"the gradient for ε ≥ {taken.decides_without:.0e}. Give more text for smaller budgets.",
        soft_wrap=True,
    )
