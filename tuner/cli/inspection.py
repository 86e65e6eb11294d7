"""Verbs that look and run nothing: check, list, doctor."""

import ast
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import tuner
from tuner.cli.options import STUDIES, FolderOption
from tuner.cli.output import JsonFlag, console, make_table, print_json
from tuner.errors import TunerError, unknown_name
from tuner.files.shipped import shipped_folder
from tuner.files.text_file import is_file, is_folder, read_text
from tuner.files.yaml_file import read_yaml
from tuner.settings import Settings, read_environment, variable
from tuner.validation import show_path

_PACKAGES = {
    "core": ("torch", "transformers", "peft", "safetensors", "pydantic"),
    "search": ("ray", "optuna", "scikit-learn"),
    "tracking": ("mlflow",),
    "report": ("plotly", "pandas"),
}


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for name, verb, epilog in (
        ("check", check, "Example: `tuner check study.yaml search_spaces/lora.yaml`"),
        ("list", list_, "Example: `tuner list tasks`"),
        ("doctor", doctor, "Example: `tuner doctor --json`"),
    ):
        app.command(name, epilog=epilog)(verb)


def check(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Study files, space files, task folders, or names of tasks and spaces."
        ),
    ],
    json_: JsonFlag = False,
) -> None:
    """Validate studies, spaces and tasks without running them; all errors at once.

    Hints tell of rows that may be meant so, and more often are not; with hints a file is valid.
    """
    problems = {path: _problems(path) for path in paths}
    hints = {path: [] if problems[path] else _hints(_located(path)) for path in paths}
    if json_:
        print_json({path: {"problems": problems[path], "hints": hints[path]} for path in problems})
    else:
        for path, of_path in problems.items():
            for problem in of_path:
                console().print(problem, style="red", soft_wrap=True)
            for hint in hints[path]:
                console().print(f"Hint: {hint}", style="yellow", soft_wrap=True)
            if not of_path:
                console().print(f"{path}: fine", soft_wrap=True)
    if any(problems.values()):
        raise typer.Exit(2)


def _problems(name: str) -> list[str]:
    from tuner.editing.task_folder import load_task

    try:
        path = _located(name)
        if is_folder(path) or path.name == "task.yaml":
            load_task(path.parent if path.name == "task.yaml" else path)
            return []
        _, content = read_yaml(path)
        is_space = isinstance(content, dict) and ("editor" in content or "editors" in content)
        if is_space:
            from tuner.search import load_space

            load_space(str(path))
            return []
        from tuner.search import check_study

        return check_study(path)
    except TunerError as error:
        return str(error).splitlines()


def _located(name: str) -> Path:
    """Return the path of that name, or the task or the space that travels with tuner."""
    path = Path(os.path.expanduser(name))
    if os.path.lexists(path) or "/" in name:
        return path
    tasks = {card.parent.name: card.parent for card in _cards()}
    known = {file.stem: file for file in _space_files()} | tasks
    if name not in known and path.suffix not in (".yaml", ".yml"):
        raise unknown_name("task or search space (nor a file or folder here)", name, known)
    return known.get(name, path)


def _hints(path: Path) -> list[str]:
    """Return the hints about the task of a valid file."""
    from tuner.editing.task_folder import load_task
    from tuner.editing.task_hints import task_hints

    task: str | Path = path.parent if path.name == "task.yaml" else path
    if not (is_folder(path) or path.name == "task.yaml"):
        _, content = read_yaml(path)
        if not isinstance(content, dict) or "task" not in content:
            return []  # a space

        from tuner.search import load_study

        task = load_study(path).task
    return task_hints(task, load_task(task).loss)


def list_(
    what: Annotated[
        str | None, typer.Argument(help="models, tasks, editors, spaces or formats; without, all.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """List what comes with tuner: models, tasks, editors, spaces and export formats."""
    readers: dict[str, Callable[[], dict[str, str]]] = {
        "models": _models,
        "tasks": _tasks,
        "editors": _editors,
        "spaces": _spaces,
        "formats": _formats,
    }
    if what is not None and what not in readers:
        raise unknown_name("list", what, readers)
    chosen = {kind: read() for kind, read in readers.items() if what in (None, kind)}
    if json_:
        print_json(chosen)
        return
    for kind, entries in chosen.items():
        table = make_table(kind.capitalize(), ("name", ""))
        for name, description in entries.items():
            table.add_row(name, description)
        console().print(table)


# A listing imports neither torch nor the editors: it should take no longer than `ls`.


def _models() -> dict[str, str]:
    folder = Path(tuner.__file__).parent / "world"
    return {
        f"builtin:{config.parent.name}": str(config.parent)
        for config in sorted(folder.glob("*/config.json"))
    }


def _tasks() -> dict[str, str]:
    return {card.parent.name: _described(card) for card in _cards()}


def _cards() -> list[Path]:
    return sorted(shipped_folder("datasets").glob("*/task.yaml"))


def _described(card: Path) -> str:
    """Return what a task's card says of it, or why it says nothing."""
    try:
        _, content = read_yaml(card)
    except TunerError as error:
        return f"cannot be used: {error}"
    description = content.get("description") if isinstance(content, dict) else None
    if not isinstance(description, str):
        return f"cannot be used: {card} has no `description`; see `tuner check {card.parent.name}`."
    return _summary(description)


def _editors() -> dict[str, str]:
    folder = Path(tuner.__file__).parent / "editors"
    files = {file.stem: file for file in folder.glob("[!_]*.py")}
    return _classes(files | {file.parent.name: file for file in folder.glob("[!_]*/editor.py")})


def _formats() -> dict[str, str]:
    folder = Path(tuner.__file__).parent / "bundle" / "formats"
    return _classes({file.stem: file for file in folder.glob("[!_]*.py")})


def _classes(files: Mapping[str, Path]) -> dict[str, str]:
    """Return what the docstring of the first public class of each file says."""
    summaries: dict[str, str] = {}
    for name, file in sorted(files.items()):
        parts = ast.parse(read_text(file)).body
        public = (
            one for one in parts if isinstance(one, ast.ClassDef) and not one.name.startswith("_")
        )
        summaries[name] = _summary(ast.get_docstring(next(public)) or "")
    return summaries


def _spaces() -> dict[str, str]:
    return {file.stem: str(file) for file in _space_files()}


def _space_files() -> list[Path]:
    return sorted(shipped_folder("search_spaces").glob("*.yaml"))


def _summary(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


def doctor(folder: FolderOption = STUDIES, json_: JsonFlag = False) -> None:
    """Say what is installed, which devices there are, and where things are kept."""
    import torch

    from tuner.files.cache import cache_folder

    cache = cache_folder()
    facts: dict[str, Any] = {
        "tuner": importlib.metadata.version("tuner"),
        "python": platform.python_version(),
        "packages": {
            part: {package: _version(package) for package in packages}
            for part, packages in _PACKAGES.items()
        },
        "devices": [
            f"cuda:{index} {torch.cuda.get_device_name(index)}"
            for index in range(torch.cuda.device_count())
        ]
        or ["cpu"],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cache": str(cache),
        "cache_bytes": sum(file.stat().st_size for file in cache.rglob("*") if is_file(file)),
        "studies": str(folder.resolve()),
        "environment": read_environment().shown(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }
    if json_:
        print_json(facts)
        return
    out = console()
    out.print(f"tuner {facts['tuner']} on Python {facts['python']}, {facts['cores']} cores")
    out.print(f"Devices: {', '.join(facts['devices'])}")
    table = make_table("Packages", ("extra", "package", "version"))
    for part, packages in facts["packages"].items():
        for package, version in packages.items():
            table.add_row(part, package, version or f"missing: pip install 'tuner[{part}]'")
    out.print(table)
    out.print(f"Cache:   {cache} ({facts['cache_bytes'] / 1e6:.1f} MB; TUNER_CACHE moves it)")
    out.print(f"Studies: {facts['studies']} (TUNER_STUDIES or --folder moves them)")
    variables = make_table("Environment", ("variable", "value", "meaning"))
    for name, field in Settings.model_fields.items():
        value = facts["environment"][variable(name)]
        shown = "" if value is None else show_path(str(value))
        variables.add_row(variable(name), shown, field.description or "")
    out.print(variables)
    out.print(f"Disk:    {facts['free_disk_bytes'] / 1e9:.0f} GB free here")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
