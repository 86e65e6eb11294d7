"""Verbs that look and run nothing: check, list, doctor."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from tuner.cli.options import STUDIES, FolderOption
from tuner.cli.output import JsonFlag, console, make_table, print_json
from tuner.errors import TunerError, unknown_name

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
    paths: Annotated[list[Path], typer.Argument(help="Study files, space files, or task folders.")],
    json_: JsonFlag = False,
) -> None:
    """Validate studies, spaces and tasks without running them; all errors at once.

    Hints tell of rows that may be meant so, and more often are not; with hints a file is valid.
    """
    problems = {str(path): _problems(path) for path in paths}
    hints = {str(path): [] if problems[str(path)] else _hints(path) for path in paths}
    if json_:
        print_json({path: {"problems": problems[path], "hints": hints[path]} for path in problems})
    else:
        for path, found in problems.items():
            for problem in found:
                console().print(problem, style="red", soft_wrap=True)
            for hint in hints[path]:
                console().print(f"Hint: {hint}", style="yellow", soft_wrap=True)
            if not found:
                console().print(f"{path}: fine", soft_wrap=True)
    if any(problems.values()):
        raise typer.Exit(2)


def _problems(path: Path) -> list[str]:
    from tuner.editing.task import load_task
    from tuner.yaml_file import read_yaml

    try:
        if path.is_dir() or path.name == "task.yaml":
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


def _hints(path: Path) -> list[str]:
    """Return the hints about the task of a valid file."""
    from tuner.editing.task import load_task
    from tuner.editing.task_hints import task_hints
    from tuner.yaml_file import read_yaml

    task: str | Path = path.parent if path.name == "task.yaml" else path
    if not (path.is_dir() or path.name == "task.yaml"):
        _, content = read_yaml(path)
        if not isinstance(content, dict) or "task" not in content:
            return []  # a space

        from tuner.search import load_study

        task = load_study(path).task
    return task_hints(task, load_task(task).loss)


def list_(
    what: Annotated[
        str | None, typer.Argument(help="models, tasks, editors or spaces; without, all.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """List what travels with tuner: models, tasks, editors, search spaces."""
    from tuner.editing.model import builtin_models
    from tuner.editing.task import load_task, task_names
    from tuner.editors import editor_names, find_editor
    from tuner.shipped import shipped_folder

    def summary(text: str | None) -> str:
        return " ".join((text or "").strip().split("\n\n")[0].split())

    known: dict[str, dict[str, str]] = {
        "models": {f"builtin:{name}": str(path) for name, path in builtin_models().items()},
        "tasks": {name: summary(load_task(name).description) for name in task_names()},
        "editors": {name: summary(find_editor(name).__doc__) for name in editor_names()},
        "spaces": {
            path.stem: str(path) for path in sorted(shipped_folder("search_spaces").glob("*.yaml"))
        },
    }
    if what is not None and what not in known:
        raise unknown_name("list", what, known)
    chosen = known if what is None else {what: known[what]}
    if json_:
        print_json(chosen)
        return
    for kind, entries in chosen.items():
        table = make_table(kind.capitalize(), ("name", ""))
        for name, description in entries.items():
            table.add_row(name, description)
        console().print(table)


def doctor(folder: FolderOption = STUDIES, json_: JsonFlag = False) -> None:
    """Say what is installed, which devices there are, and where things are kept."""
    import torch

    from tuner.cache import cache_folder

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
        "cache_bytes": sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        "studies": str(folder.resolve()),
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
    out.print(f"Disk:    {facts['free_disk_bytes'] / 1e9:.0f} GB free here")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
