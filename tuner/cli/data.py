"""Verbs about data: list what there is, fetch published files, import them as tasks."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import SeedOption
from tuner.cli.output import JsonFlag, console, make_table, messages, print_json
from tuner.errors import ConfigError, TunerError
from tuner.files.text_file import exists, is_file, is_taken

if TYPE_CHECKING:
    from tuner.editing.task import Task
    from tuner.importers.scoped_edits import EditCounts
    from tuner.importers.selection import FactSelection

    Importer = Callable[[Path, str, EditCounts], Task]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    data = typer.Typer(
        help="List, fetch and import data: shipped tasks and published benchmarks.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    data.command("list", epilog="Example: `tuner data list --json`")(list_)
    data.command(epilog="Example: `tuner data fetch counterfact`")(fetch)
    importing = typer.Typer(
        help="Turn a published file into a task's folder.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    importing.command(
        epilog="Example: `tuner data import counterfact counterfact.json --out my-facts --val 500`"
    )(counterfact)
    importing.command(
        epilog="Example: `tuner data import zsre zsre_mend_eval.json --out my-questions`"
    )(zsre)
    importing.command(
        "canonical_examples",
        epilog="Example: `tuner data import canonical_examples model-editing-canonical-examples "
        "--task country_capital --out my-capitals`",
    )(canonical_examples)
    for name, importer, out, about in (
        ("serac_qa", _serac_qa, "questions", "SERAC's QA: zsRE's questions with rephrases."),
        (
            "serac_qa_hard",
            _serac_qa_hard,
            "hard-questions",
            "SERAC's QA-hard: QA with implied and True/False questions and hard negatives.",
        ),
        (
            "serac_fact_checking",
            _serac_fact_checking,
            "facts",
            "SERAC's fact checking: VitaminC's evidence and claims.",
        ),
        (
            "serac_dialogue",
            _serac_dialogue,
            "opinions",
            "SERAC's ConvSent: the sentiment about topics.",
        ),
    ):
        importing.command(
            name,
            help=f"Import {about}",
            epilog=f"Example: `tuner data import {name} serac --out my-{out} --test 100`",
        )(_importing_serac(importer))
    data.add_typer(importing, name="import")
    app.add_typer(data, name="data")


OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the new task.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The file as published.")]
ValOption = Annotated[
    int | None,
    typer.Option("--val", min=1, help="Edits for validation; default 1000, at most 2/5 of all."),
]
TestOption = Annotated[
    int | None,
    typer.Option("--test", min=1, help="Edits for test; default 1000, at most 2/5 of all."),
]
FactsOption = Annotated[
    int | None,
    typer.Option("--facts", min=0, help="True facts to train on; default 20 per edit."),
]


SeracArgument = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="SERAC's archive, unpacked, or the folder of the files."),
]
TrainOption = Annotated[
    int | None,
    typer.Option(
        "--train", min=0, help="Edits to train on, 0 for none; default 10000, at most half of all."
    ),
]
ScopedValOption = Annotated[
    int | None,
    typer.Option("--val", min=1, help="Edits for validation; default 1000, at most half of all."),
]
ScopedTestOption = Annotated[
    int | None,
    typer.Option("--test", min=1, help="Edits for test; default 1000, at most half of all."),
]
SimultaneousOption = Annotated[
    int | None,
    typer.Option(
        "--edits", min=1, help="Edits made at once, 10 in the paper; default all of a split."
    ),
]


def list_(json_: JsonFlag = False) -> None:
    """List shipped tasks and the published files that can be fetched."""
    from tuner.editing.task_folder import load_task, task_names
    from tuner.importers.by_hand import published_by_hand
    from tuner.importers.catalogue import published_files

    tasks: dict[str, Task] = {}
    for name in task_names():
        try:
            tasks[name] = load_task(name)
        except TunerError as error:
            messages().print(f"The task {name} cannot be used: {error}", soft_wrap=True)
    folder = _data_folder(None)
    if json_:
        print_json(
            {
                "tasks": {name: _counts(task) for name, task in tasks.items()},
                "files": {
                    file.name: {
                        "about": file.about,
                        "url": file.url(),
                        "source": file.source,
                        "licence": file.licence,
                        "path": _present(folder / file.file_name),
                    }
                    for file in published_files()
                },
                "by_hand": {
                    one.name: {
                        "about": one.about,
                        "files": one.files,
                        "where": one.where,
                        "source": one.source,
                        "licence": one.licence,
                    }
                    for one in published_by_hand()
                },
            }
        )
        return
    columns = ("name", "edits", "OOD rows", "neighbours", "")
    table = make_table("Tasks that travel with tuner", columns, right=columns[1:4])
    for name, task in tasks.items():
        counts = _counts(task)
        table.add_row(
            name,
            *(str(counts[part]) for part in ("canonical", "ood", "neighbours")),
            task.description,
        )
    console().print(table)
    table = make_table("Published files: tuner data fetch NAME", ("name", "", "licence", "here"))
    for file in published_files():
        here = "yes" if _present(folder / file.file_name) else "no"
        table.add_row(file.name, file.about, file.licence, here)
    console().print(table)
    title = "Published files to get by hand: tuner data import NAME"
    table = make_table(title, ("name", "", "files", "licence"))
    for one in published_by_hand():
        table.add_row(one.name, one.about, ", ".join(one.files), one.licence)
    console().print(table)


def _counts(task: "Task") -> Mapping[str, int]:
    splits = (task.val, task.test)
    return {
        "canonical": sum(len(split.canonical) for split in splits),
        "ood": sum(len(split.ood) for split in splits),
        "hard_negatives": sum(len(split.hard_negatives) for split in splits),
        "related": sum(len(split.related) for split in splits),
        "neighbours": sum(len(split.neighbours) for split in splits),
    }


def _present(path: Path) -> str | None:
    return str(path) if is_file(path) else None


def _data_folder(chosen: Path | None) -> Path:
    from tuner.files.cache import cache_folder

    return chosen or cache_folder() / "published"


def fetch(
    name: Annotated[str, typer.Argument(help="A file of `tuner data list`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; default one in the user's cache.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option("--mirror", help="Address of another folder that has the file.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="A checksum that you trust.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Download a published file, or check the one that is here."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from tuner.importers import download
    from tuner.importers.catalogue import find_published

    file = find_published(name)
    folder = _data_folder(out)
    say = messages()
    if not exists(folder / file.file_name):
        size = download.published_size(file, mirror)
        said = "the server does not say" if size is None else f"{size / 1e6:,.1f} MB"
        for what, value in (
            ("File", file.url(mirror)),
            ("Size", said),
            ("Source", file.source),
            ("Licence", file.licence),
        ):
            say.print(f"{what + ':':<9}{value}", soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=say, transient=True) as bar:
        task = bar.add_task(file.file_name, total=None)
        got = download.fetch(
            file,
            folder,
            mirror=mirror,
            sha256=sha256,
            note=lambda here, total: bar.update(task, completed=here, total=total),
        )
    if json_:
        print_json(
            {
                "path": str(got.path),
                "bytes": got.bytes,
                "sha256": got.sha256,
                "was_there": got.was_there,
                "checksum_was_known": got.known,
            }
        )
        return
    console().print(f"{got.path} ({got.bytes:,} bytes)", soft_wrap=True)
    console().print(f"sha256 {got.sha256}", soft_wrap=True)
    say.print(
        "The checksum is the one that was known."
        if got.known
        else "No checksum has been published for this file: this one is now written beside it, and "
        "later downloads are checked against it. It does not prove that this one is right.",
        soft_wrap=True,
    )


def counterfact(
    file: FileArgument,
    out: OutOption,
    val: ValOption = None,
    test: TestOption = None,
    facts: FactsOption = None,
    seed: SeedOption = 0,
    snippets: Annotated[
        Path | None,
        typer.Option("--snippets", help="attribute_snippets.json, to judge consistency by."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Import counterfact.json or multi_counterfact.json."""
    from tuner.importers.counterfact import import_counterfact

    selection = _selection(val, test, facts, seed)
    _save(import_counterfact(file, _name(out), selection, snippets), out, json_)


def zsre(
    file: FileArgument,
    out: OutOption,
    val: ValOption = None,
    test: TestOption = None,
    facts: FactsOption = None,
    seed: SeedOption = 0,
    target: Annotated[
        str, typer.Option("--target", help="answer, as in most papers, or alt, as in EasyEdit.")
    ] = "answer",
    json_: JsonFlag = False,
) -> None:
    """Import zsre_mend_eval.json or zsre_mend_train.json."""
    from tuner.errors import unknown_name
    from tuner.importers.zsre import ZsreTarget, import_zsre

    known = [one.value for one in ZsreTarget]
    if target not in known:
        raise unknown_name("target", target, known)
    selection = _selection(val, test, facts, seed)
    _save(import_zsre(file, _name(out), selection, ZsreTarget(target)), out, json_)


def canonical_examples(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="The published repository, its data, or a task's files."
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            "-t",
            help="country_capital, company_ceo, stereoset, pronoun_gender_bias, temporal or "
            "verb_conjugation.",
        ),
    ],
    out: OutOption,
    split_val: Annotated[
        int | None,
        typer.Option(
            "--split-val",
            min=0,
            metavar="SEED",
            help="Read only the validation files and divide them into validation and test.",
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Import one of the six tasks of the canonical-examples paper."""
    from tuner.importers.canonical_examples import import_canonical_examples

    name = _name(out)
    _save(import_canonical_examples(folder, task, name, divide_val=split_val), out, json_)


def _importing_serac(importer: "Callable[[], Importer]") -> Callable[..., None]:
    """Return the verb that imports one of SERAC's problems."""

    def verb(
        folder: SeracArgument,
        out: OutOption,
        train: TrainOption = None,
        val: ScopedValOption = None,
        test: ScopedTestOption = None,
        edits: SimultaneousOption = None,
        seed: SeedOption = 0,
        json_: JsonFlag = False,
    ) -> None:
        from tuner.importers.scoped_edits import EditCounts

        counts = EditCounts(train=train, val=val, test=test, simultaneous=edits, seed=seed)
        _save(importer()(folder, _name(out), counts), out, json_)

    return verb


def _serac_qa() -> "Importer":
    from tuner.importers.serac.qa import import_serac_qa

    return import_serac_qa


def _serac_qa_hard() -> "Importer":
    from tuner.importers.serac.qa import import_serac_qa_hard

    return import_serac_qa_hard


def _serac_fact_checking() -> "Importer":
    from tuner.importers.serac.fact_checking import import_serac_fact_checking

    return import_serac_fact_checking


def _serac_dialogue() -> "Importer":
    from tuner.importers.serac.dialogue import import_serac_dialogue

    return import_serac_dialogue


def _selection(val: int | None, test: int | None, facts: int | None, seed: int) -> "FactSelection":
    from tuner.importers.selection import FactSelection

    return FactSelection(val=val, test=test, facts=facts, seed=seed)


def _name(out: Path) -> str:
    """Return the task's name, that of its folder; a full folder is refused before the work."""
    if is_taken(out):
        raise ConfigError(f"{out} exists and is not empty; choose another folder.")
    return out.resolve().name


def _save(task: "Task", out: Path, json_: bool) -> None:
    from tuner.editing.task_folder import save_task

    save_task(task, out)
    if json_:
        print_json(
            {"task": str(out), "hash": task.hash, "description": task.description}
            | {"rows": _counts(task)}
        )
        return
    console().print(f"{out}: {task.description}", soft_wrap=True)
    spelled = shlex.quote(str(out) if out.is_absolute() else f"./{out}")
    messages().print(f"Use it: tuner search --task {spelled} --space lora", soft_wrap=True)
