"""The verb about more and more edits at once: scaling."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from tuner.cli.output import JsonFlag, console, make_table, messages, print_json
from tuner.cli.values import read_editor, read_member, read_model, read_settings
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.files.atomic_file import write_text
from tuner.files.text_file import exists, is_folder

if TYPE_CHECKING:
    from tuner.editing.editor import Editor
    from tuner.protocols.scaling import Estimate, ScalingPoint, ScalingRow


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Example: `tuner scaling --task zsre_world --editor look_up --editor lora "
        "--set lora.learning_rate=5e-3 --edits 1 --edits 5 --out my-scaling`"
    )(scaling)
    add_old_name(app, "sweep", "scaling", scaling)


def scaling(
    task: TaskOption,
    editor: Annotated[
        list[str], typer.Option("--editor", help="A method: see `tuner list`; repeatable.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the points, the table and the plot.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A hyperparameter, as name=value, or EDITOR.name=value; repeatable."
        ),
    ] = None,
    edits: Annotated[
        list[int] | None,
        typer.Option(
            "--edits",
            min=1,
            help="A number of simultaneous edits; repeatable. Default 1, 5, 25, 75.",
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Sets of edits per number, for the intervals.")
    ] = 3,
    epsilon: Annotated[
        float, typer.Option("--epsilon", "-e", help="The budget that each edit must keep.")
    ] = 1e-3,
    rule: Annotated[str, typer.Option("--rule", help="fitted, best or published.")] = "fitted",
    model: ModelOption = "builtin:neox",
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "val",
    general: GeneralOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Run editors on more and more simultaneous edits: success, drawdown and their difference.

    The same command goes on where it was stopped.
    """
    methods = _editors(editor, read_settings(settings or []))
    if not 0 < epsilon < 1:
        raise ConfigError(
            f"0 < epsilon < 1 must hold for every budget, but got {epsilon_name(epsilon)}."
        )
    if exists(out) and not is_folder(out):
        raise ConfigError(f"{out} is a file; choose another folder.")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tuner.cli.hints import tell_hints
    from tuner.editing.companions import Companions
    from tuner.editing.corpus import load_general_text
    from tuner.editing.task_folder import load_task
    from tuner.protocols.scaling import DEFAULT_COUNTS, ScalingRun, summarise
    from tuner.report import write_scaling
    from tuner.trial.records import Rule, SplitName

    chosen_split, chosen_rule = (
        read_member(SplitName, split, "split"),
        read_member(Rule, rule, "rule"),
    )
    examples = load_task(task)
    tell_hints(task, examples.loss)
    base = read_model(model, dtype, device)
    planned = ScalingRun(
        base,
        examples,
        methods,
        load_general_text(general, base),
        out,
        counts=tuple(edits or DEFAULT_COUNTS),
        draws=draws,
        epsilon=epsilon,
        rule=chosen_rule,
        split=chosen_split,
        seed=seed,
        companions=Companions(device=str(base.device)),
    )
    points: list[ScalingPoint] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=messages(), transient=True) as bar:
        running = bar.add_task("points", total=planned.total)
        for point in planned.run():
            points.append(point)
            bar.update(running, advance=1, description=f"{point.editor}, {point.edits} edits")
    rows = summarise(points)
    title = f"{examples.name}, {split} split, ε={epsilon_name(epsilon)}"
    table, plot = out / "table.csv", out / "sweep.html"
    _write_table(rows, table)
    write_scaling(rows, f"Simultaneous edits: {title}", plot)
    if json_:
        print_json({"rows": rows, "points": points, "table": table, "plot": plot})
        return
    heads = ("editor", "edits", "draws", "ES", "DD", "ES − DD")
    shown = make_table(title, heads, right=heads[1:])
    for row in rows:
        failed = f" ({row.failed} failed)" if row.failed else ""
        figures = (_show(one) for one in (row.success, row.drawdown, row.difference))
        shown.add_row(row.editor, str(row.edits), f"{row.draws}{failed}", *figures)
    console().print(shown)
    if all(row.drawdown is None for row in rows):
        messages().print(
            "The task measures no drawdown: that needs hard negatives and one of the success "
            "rules sequence, likelier and sentiment.",
            soft_wrap=True,
        )
    console().print(f"Table: {table}\nPlot: {plot}", soft_wrap=True)


def _editors(names: Sequence[str], values: Mapping[str, Any]) -> list["Editor"]:
    """Return the editors; settings with an editor's name before them are for it alone."""
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    shared: dict[str, Any] = {}
    for key, value in values.items():
        name = next((name for name in names if key.startswith(f"{name}.")), None)
        if name is not None:
            own[name][key.removeprefix(f"{name}.")] = value
        elif "." in key:
            raise ConfigError(
                f"--set {key}: no --editor is called {key.partition('.')[0]!r}; the editors are "
                f"{', '.join(names)}."
            )
        else:
            shared[key] = value
    return [read_editor(name, shared | own[name]) for name in names]


def _write_table(rows: Sequence["ScalingRow"], path: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    names = ("success", "drawdown", "difference")
    bounds = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    writer.writerow(["editor", "edits", "draws", "failed", *bounds])
    for row in rows:
        cells: list[float | str] = []
        for one in (row.success, row.drawdown, row.difference):
            interval = one.interval if one else None
            cells.append(one.mean if one else "")
            cells += [interval.low, interval.high] if interval else ["", ""]
        writer.writerow([row.editor, row.edits, row.draws, row.failed, *cells])
    write_text(path, table.getvalue())


def _show(estimate: "Estimate | None") -> str:
    """Return a mean with its interval, where it has one."""
    if estimate is None:
        return "–"
    interval = estimate.interval
    span = "" if interval is None else f" [{interval.low:.2f}, {interval.high:.2f}]"
    return f"{estimate.mean:.3f}{span}"
