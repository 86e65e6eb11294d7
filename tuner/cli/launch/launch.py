"""The verb that brings a study to a cluster: launch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.launch.backend_options import require_backend
from tuner.cli.launch.logs_resume import DetachOption
from tuner.cli.options import ClusterOption, ContextOption, RayAddressOption
from tuner.cli.output import JsonFlag, print_json


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: `tuner launch study.yaml --cluster local`")(launch)


def launch(
    study: Annotated[Path, typer.Argument(help="A study as YAML.")],
    cluster: ClusterOption = None,
    ray_address: RayAddressOption = None,
    context: ContextOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    detach: DetachOption = False,
    json_: JsonFlag = False,
) -> None:
    """Run a study on Kubernetes, as a RayJob, or on a Ray cluster, as a job; and follow it.

    Everything is checked before it is sent, for Kubernetes by the rules of KubeRay's operator. Its
    driver goes on from its ledger. Launching twice starts once; Ctrl-C leaves the study running.
    """
    from tuner.launch import as_yaml
    from tuner.search import load_study

    place = require_backend(cluster, ray_address, context)
    asked = load_study(study)
    if not dry_run:
        from tuner.cli.launch.actions import launch_there

        launch_there(asked, place, detach=detach, json_=json_)
        return
    sent = place.preview(asked)
    if json_:
        print_json(sent)
    else:
        sys.stdout.write(as_yaml(sent))
