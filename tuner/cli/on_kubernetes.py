"""What the verbs do about studies on Kubernetes."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from tuner.cli.output import console, make_table, messages, print_json
from tuner.errors import unknown_name

if TYPE_CHECKING:
    from tuner.launch import KubernetesApi, LaunchedStudy, Rendered

T = TypeVar("T")

_INTERRUPTED = 130


def launch_on_kubernetes(
    rendered: "Rendered", cluster: str, context: str | None, *, detach: bool, json_: bool
) -> None:
    """Submit a rendered study and follow it."""
    from tuner.launch import submit

    async def begin(api: "KubernetesApi") -> str:
        sent = await submit(api, rendered)
        place = f"the namespace {api.namespace}"
        words = f"Sent to {place}." if sent else f"It is in {place} already; nothing was sent."
        messages().print(f"{rendered.name}: {words}", soft_wrap=True)
        return rendered.name

    _see_through(cluster, context, begin, detach=detach, json_=json_)


def show_on_kubernetes(
    name: str | None, cluster: str, context: str | None, *, follow: bool, json_: bool
) -> None:
    """Show one study of a cluster, or list all."""
    from tuner.launch import look, look_at_all

    if name is None:
        studies = _on(cluster, context, look_at_all)
        if json_:
            print_json(studies)
            return
        table = make_table(f"Studies on {cluster}", ("study", "state", "attempt", "started"))
        for one in studies:
            began = one.started.strftime("%Y-%m-%d %H:%M") if one.started else "–"
            attempt = f"{min(one.lost_attempts + 1, one.attempts)}/{one.attempts}"
            table.add_row(one.study, one.state.value, attempt, began)
        console().print(table)
        return
    if follow:
        _see_through(cluster, context, _named(name), detach=False, json_=json_)
        return
    study = _on(cluster, context, lambda api: look(api, name))
    if json_:
        print_json(study)
    else:
        _print(study)


def stop_on_kubernetes(
    name: str, cluster: str, context: str | None, *, delete: bool, wait_s: float, json_: bool
) -> None:
    """Stop a study of a cluster, or take it away."""
    from tuner.launch import delete as take_away
    from tuner.launch import stop

    if delete:
        _on(cluster, context, lambda api: take_away(api, name, wait_s=wait_s))
        if json_:
            print_json({"study": name, "deleted": True})
        else:
            console().print(f"{name} is off the cluster; its trials stay in the ledger.")
        return
    study = _on(cluster, context, lambda api: stop(api, name, wait_s=wait_s))
    stopped = study.has_ended or (study.state.value in ("stopped", "queued") and not study.pods)
    if json_:
        print_json({"study": name, "stopped": stopped, "state": study.state.value})
    elif study.has_ended:
        console().print(f"{name} has ended already: {study.words}.", soft_wrap=True)
    elif stopped:
        console().print(
            f"{name} has stopped; `tuner resume {name} --cluster {cluster}` goes on.",
            soft_wrap=True,
        )
    else:
        console().print(f"{name} is still stopping after {wait_s:g} s.")
    if not stopped:
        raise typer.Exit(1)


def log_on_kubernetes(
    name: str,
    cluster: str,
    context: str | None,
    *,
    of: str,
    follow: bool,
    tail: int | None,
    json_: bool,
) -> None:
    """Show what a part of a study has written."""
    from tuner.launch import Part, log_lines

    if of not in list(Part):
        raise unknown_name("part of a study", of, [part.value for part in Part])
    lines: list[str] = []

    async def read(api: "KubernetesApi") -> None:
        found = log_lines(api, name, Part(of), follow=follow, tail=tail)
        async with aclosing(found):
            async for line in found:
                if json_:
                    lines.append(line)
                else:
                    sys.stdout.write(line + "\n")
                    sys.stdout.flush()

    try:
        _on(cluster, context, read)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    if json_:
        print_json({"study": name, "of": of, "lines": lines})


def resume_on_kubernetes(
    name: str, cluster: str, context: str | None, *, wait_s: float, detach: bool, json_: bool
) -> None:
    """Have a study go on and follow it."""
    from tuner.launch import resume

    async def begin(api: "KubernetesApi") -> str:
        needed = await resume(api, name, wait_s=wait_s)
        messages().print(f"{name} goes on." if needed else f"{name} runs already.", soft_wrap=True)
        return name

    _see_through(cluster, context, begin, detach=detach, json_=json_)


def _named(name: str) -> "Callable[[KubernetesApi], Coroutine[Any, Any, str]]":
    async def begin(_: "KubernetesApi") -> str:
        return name

    return begin


def _see_through(
    cluster: str,
    context: str | None,
    begin: "Callable[[KubernetesApi], Coroutine[Any, Any, str]]",
    *,
    detach: bool,
    json_: bool,
) -> None:
    """Begin something, follow the study that it is about, and exit as that ended."""
    from tuner.cli.following import LaunchDisplay
    from tuner.launch import follow, look

    begun: list[str] = []

    async def see(api: "KubernetesApi") -> "LaunchedStudy":
        name = await begin(api)
        begun.append(name)
        if detach:
            return await look(api, name)
        with LaunchDisplay(messages()) as display:
            return await follow(api, name, display)

    try:
        study = _on(cluster, context, see)
    except KeyboardInterrupt:
        for name in begun:
            messages().print(
                f"\nLeft; {name} goes on. Come back with `tuner status {name} --cluster {cluster} "
                f"--follow`, end it with `tuner stop {name} --cluster {cluster}`.",
                soft_wrap=True,
            )
        raise typer.Exit(_INTERRUPTED) from None
    if json_:
        print_json(study)
    else:
        _hint(study, cluster)
    if study.rests and not study.succeeded:
        raise typer.Exit(1)


def _hint(study: "LaunchedStudy", cluster: str) -> None:
    """Say what can be done next."""
    name, place = study.name, f"--cluster {cluster}"
    match study.state.value:
        case "completed":
            words = f"Logs: tuner logs {name} {place}"
        case "failed" | "refused" | "stopped":
            words = f"Logs: tuner logs {name} {place} · go on: tuner resume {name} {place}"
        case "deleted":
            return
        case _:
            words = f"Follow: tuner status {name} {place} --follow"
    messages().print(words, soft_wrap=True)


def _print(study: "LaunchedStudy") -> None:
    from tuner.cli.following import headline

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


def _on(
    cluster: str, context: str | None, act: "Callable[[KubernetesApi], Coroutine[Any, Any, T]]"
) -> T:
    """Return what is done on a cluster's namespace."""
    from tuner.launch import connect, load_cluster

    namespace = load_cluster(cluster).namespace

    async def run() -> T:
        async with connect(namespace, context) as api:
            return await act(api)

    return asyncio.run(run())
