"""Actions on launched studies."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from tuner.cli.output import console, make_table, messages, print_json
from tuner.errors import unknown_name

if TYPE_CHECKING:
    from tuner.launch import Backend, LaunchedStudy
    from tuner.search import StudyConfig

T = TypeVar("T")

_INTERRUPTED = 130


def launch_there(study: "StudyConfig", backend: "Backend", *, detach: bool, json_: bool) -> None:
    """Submit a study and follow it."""
    from tuner.launch import legal_name

    backend.preview(study)  # what is wrong with a study is told before what is wrong with a cluster

    async def begin() -> str:
        name = legal_name(study.name)
        sent = await backend.submit(study)
        there = f"It is in {backend.description} already; nothing was sent."
        words = f"Sent to {backend.description}." if sent else there
        messages().print(f"{name}: {words}", soft_wrap=True)
        return name

    _see_through(backend, begin, detach=detach, json_=json_)


def show_there(name: str | None, backend: "Backend", *, follow: bool, json_: bool) -> None:
    """Show one study of a backend, or list all."""
    if name is None:
        studies = _within(backend, backend.list_studies)
        if json_:
            print_json(studies)
            return
        table = make_table(
            f"Studies in {backend.description}", ("study", "state", "attempt", "started")
        )
        for one in studies:
            began = one.started.strftime("%Y-%m-%d %H:%M") if one.started else "–"
            attempt = f"{one.attempt}/{one.attempts}"
            table.add_row(one.study, one.state.value, attempt, began)
        console().print(table)
        return
    if follow:
        _see_through(backend, _named(name), detach=False, json_=json_)
        return
    study = _within(backend, lambda: backend.status(name))
    if json_:
        print_json(study)
    else:
        _print(study)


def stop_there(name: str, backend: "Backend", *, delete: bool, wait_s: float, json_: bool) -> None:
    """Stop a study of a backend, or take it away."""
    if delete:
        _within(backend, lambda: backend.delete(name, wait_s=wait_s))
        if json_:
            print_json({"study": name, "deleted": True})
        else:
            console().print(f"{name} is off the cluster; its trials stay in the ledger.")
        return
    study = _within(backend, lambda: backend.stop(name, wait_s=wait_s))
    stopped = study.has_ended or (study.state.value in ("stopped", "queued") and not study.pods)
    if json_:
        print_json({"study": name, "stopped": stopped, "state": study.state.value})
    elif study.has_ended:
        console().print(f"{name} has ended already: {study.words}.", soft_wrap=True)
    elif stopped:
        console().print(
            f"{name} has stopped; `tuner resume {name} {backend.option}` goes on.",
            soft_wrap=True,
        )
    else:
        console().print(f"{name} is still stopping after {wait_s:g} s.")
    if not stopped:
        raise typer.Exit(1)


def log_there(
    name: str, backend: "Backend", *, of: str, follow: bool, tail: int | None, json_: bool
) -> None:
    """Show what a part of a study has written."""
    from tuner.launch import LogSource

    if of not in list(LogSource):
        raise unknown_name("part of a study", of, [part.value for part in LogSource])
    lines: list[str] = []

    async def read() -> None:
        log = backend.log_lines(name, LogSource(of), follow=follow, tail=tail)
        async with aclosing(log):
            async for line in log:
                if json_:
                    lines.append(line)
                else:
                    sys.stdout.write(line + "\n")
                    sys.stdout.flush()

    try:
        _within(backend, read)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    if json_:
        print_json({"study": name, "of": of, "lines": lines})


def resume_there(
    name: str, backend: "Backend", *, wait_s: float, detach: bool, json_: bool
) -> None:
    """Have a study go on and follow it."""

    async def begin() -> str:
        needed = await backend.resume(name, wait_s=wait_s)
        messages().print(f"{name} goes on." if needed else f"{name} runs already.", soft_wrap=True)
        return name

    _see_through(backend, begin, detach=detach, json_=json_)


def _named(name: str) -> Callable[[], Coroutine[Any, Any, str]]:
    async def begin() -> str:
        return name

    return begin


def _see_through(
    backend: "Backend",
    begin: Callable[[], Coroutine[Any, Any, str]],
    *,
    detach: bool,
    json_: bool,
) -> None:
    """Begin something, follow the study that it is about, and exit as that ended."""
    from tuner.cli.launch.display import LaunchDisplay

    begun: list[str] = []

    async def see() -> "LaunchedStudy":
        name = await begin()
        begun.append(name)
        if detach:
            return await backend.status(name)
        with LaunchDisplay(messages()) as display:
            return await backend.follow(name, display)

    try:
        study = _within(backend, see)
    except KeyboardInterrupt:
        for name in begun:
            messages().print(
                f"\nLeft; {name} goes on. Come back with `tuner status {name} {backend.option} "
                f"--follow`, end it with `tuner stop {name} {backend.option}`.",
                soft_wrap=True,
            )
        raise typer.Exit(_INTERRUPTED) from None
    if json_:
        print_json(study)
    else:
        _hint(study, backend.option)
    if study.rests and not study.succeeded:
        raise typer.Exit(1)


def _hint(study: "LaunchedStudy", backend: str) -> None:
    """Say what can be done next."""
    name = study.name
    match study.state.value:
        case "completed":
            words = f"Logs: tuner logs {name} {backend}"
        case "failed" | "refused" | "stopped":
            words = f"Logs: tuner logs {name} {backend} · go on: tuner resume {name} {backend}"
        case "deleted":
            return
        case _:
            words = f"Follow: tuner status {name} {backend} --follow"
    messages().print(words, soft_wrap=True)


def _print(study: "LaunchedStudy") -> None:
    from tuner.cli.launch.display import headline

    out = console()
    out.print(headline(study), soft_wrap=True)
    for words in study.reasons:
        out.print(f"  {words}", style="yellow", soft_wrap=True)
    for key, when in (("started", study.started), ("ended", study.ended)):
        if when is not None:
            out.print(f"  {key} {when:%Y-%m-%d %H:%M:%S} UTC")
    if study.lost_attempts:
        out.print(f"  {study.lost_attempts} of {study.attempts} attempts lost")
    for pod in study.pods:
        out.print(f"  {pod.role}: {pod.name}, {pod.phase.lower() or 'new'}", soft_wrap=True)


def _within(backend: "Backend", act: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what is done at a backend, over one connection."""

    async def run() -> T:
        async with backend:
            return await act()

    return asyncio.run(run())
