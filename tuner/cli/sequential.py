"""The verb about edits one after another: sequential."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.old_names import add_old_name
from tuner.cli.options import (
    DeviceOption,
    DtypeOption,
    GeneralOption,
    ModelOption,
    SeedOption,
    TaskOption,
)
from tuner.cli.output import (
    JsonFlag,
    console,
    make_table,
    messages,
    print_json,
    show_deviation,
    show_share,
)
from tuner.cli.values import read_budget, read_editor, read_member, read_model, read_settings
from tuner.errors import ConfigError, MissingExtra
from tuner.files.text_file import exists, is_file, is_folder, is_taken


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Example: `tuner sequential --task counterfact_world --editor rome --every 5 "
        "--out my-sequence`"
    )(sequential)
    add_old_name(app, "stream", "sequential", sequential)


def sequential(
    task: TaskOption,
    editor: Annotated[str, typer.Option("--editor", help="The method: see `tuner list`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder; one that holds this sequence goes on.")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A hyperparameter, as name=value; repeatable.")
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Measure after every so many edits.")
    ] = 1,
    only_wrong: Annotated[
        bool,
        typer.Option("--only-wrong", help="Leave out edits that the model gets right already."),
    ] = False,
    edits: Annotated[
        int | None,
        typer.Option("--edits", min=1, help="How many, where a task has a pool; default its own."),
    ] = None,
    model: ModelOption = "builtin:neox",
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "val",
    general: GeneralOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Edit sequentially (lifelong editing): one edit after another; what is left of earlier ones.

    Writes stream.jsonl, a line per edit, and retention.html, a plot.
    """
    method = read_editor(editor, read_settings(settings or []))
    if exists(out) and not is_folder(out):
        raise ConfigError(f"{out} is a file; choose another folder.")
    if is_taken(out) and not is_file(out / "stream.jsonl"):
        raise ConfigError(f"{out} exists and holds no sequence; choose another folder.")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tuner.cli.hints import tell_hints
    from tuner.editing.companions import Companions
    from tuner.editing.corpus import load_general_text
    from tuner.editing.task_folder import load_task
    from tuner.protocols.sequential import SequentialEntry, run_sequence
    from tuner.report import write_retention
    from tuner.trial.evaluator import Evaluator
    from tuner.trial.records import SplitName

    chosen = read_member(SplitName, split, "split")
    examples = load_task(task, edits)
    tell_hints(task, examples.loss)
    method.check_task(examples)
    base = read_model(model, dtype, device)
    companions = Companions(device=str(base.device))
    method.check_model(base, companions)
    text = load_general_text(general, base)
    evaluator = Evaluator(base, examples, read_budget(None), text, companions=companions)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=messages(), transient=True) as bar:
        shown = bar.add_task("edits", total=len(evaluator.split(chosen).canonical))

        def note(entry: SequentialEntry) -> None:
            bar.update(shown, completed=entry.number)

        record = run_sequence(
            evaluator,
            method,
            seed=seed,
            split=chosen,
            every=every,
            only_wrong=only_wrong,
            path=out / "stream.jsonl",
            on_entry=note,
        )
    plot: Path | None = None
    try:
        plot = write_retention(record, out / "retention.html")
    except MissingExtra as error:
        messages().print(f"No plot: {error}", soft_wrap=True)
    if json_:
        print_json({"header": record.header, "entries": record.entries, "plot": plot})
        return
    heads = ("edits", "made", "retention", "OOD rows", "unchanged", "deviation")
    table = make_table(
        f"{examples.name} with {method.name()}, one after another", heads, right=heads
    )
    for entry in record.measured:
        table.add_row(
            str(entry.number),
            str(sum(one.applied for one in record.entries[: entry.number])),
            show_share(entry.retention),
            show_share(entry.generalisation),
            show_share(entry.unchanged),
            "–" if entry.deviation is None else show_deviation(entry.deviation),
        )
    console().print(table)
    console().print(f"Sequence: {out / 'stream.jsonl'}", soft_wrap=True)
    if plot is not None:
        console().print(f"Plot: {plot}", soft_wrap=True)
