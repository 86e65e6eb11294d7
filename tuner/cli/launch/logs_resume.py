"""Verbs about launched studies alone: logs and resume."""

from typing import Annotated

import typer

from tuner.cli.launch.backend_options import require_backend
from tuner.cli.options import ClusterOption, ContextOption, RayAddressOption
from tuner.cli.output import JsonFlag

NameArgument = Annotated[str, typer.Argument(help="A launched study.")]
DetachOption = Annotated[
    bool, typer.Option("--detach", "-d", help="Return at once; the study goes on by itself.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb, epilog in (
        (logs, "Example: `tuner logs country_capital-lora --cluster local --follow`"),
        (resume, "Example: `tuner resume country_capital-lora --cluster local`"),
    ):
        app.command(epilog=epilog)(verb)


def logs(
    name: NameArgument,
    cluster: ClusterOption = None,
    ray_address: RayAddressOption = None,
    context: ContextOption = None,
    of: Annotated[
        str, typer.Option("--of", help="driver (the search itself), head or autoscaler.")
    ] = "driver",
    follow: Annotated[
        bool, typer.Option("--follow", "-F", help="Go on until the study rests.")
    ] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Only the last lines.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show what a launched study has written; across lost attempts with --follow."""
    from tuner.cli.launch.actions import log_there

    place = require_backend(cluster, ray_address, context)
    log_there(name, place, of=of, follow=follow, tail=tail, json_=json_)


def resume(
    name: NameArgument,
    cluster: ClusterOption = None,
    ray_address: RayAddressOption = None,
    context: ContextOption = None,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait until an ended study is cleared away.")
    ] = 180.0,
    detach: DetachOption = False,
    json_: JsonFlag = False,
) -> None:
    """Have a launched study go on from its ledger, whether it was stopped or has ended."""
    from tuner.cli.launch.actions import resume_there

    place = require_backend(cluster, ray_address, context)
    resume_there(name, place, wait_s=wait, detach=detach, json_=json_)
