"""The verb that brings a study to a cluster: launch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.launched import DetachOption
from tuner.cli.options import ClusterOption, ContextOption
from tuner.cli.output import JsonFlag, print_json


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: `tuner launch study.yaml --cluster local`")(launch)


def launch(
    study: Annotated[Path, typer.Argument(help="A study as YAML.")],
    cluster: ClusterOption,
    context: ContextOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    detach: DetachOption = False,
    json_: JsonFlag = False,
) -> None:
    """Run a study on Kubernetes, as a RayJob whose driver goes on from its ledger, and follow it.

    Everything is checked by the rules of KubeRay's operator before it is sent. Launching twice
    starts once; Ctrl-C leaves the study running.
    """
    from tuner.launch import as_yaml, load_cluster, render
    from tuner.search import load_study

    rendered = render(load_study(study), load_cluster(cluster))
    if not dry_run:
        from tuner.cli.on_kubernetes import launch_on_kubernetes

        launch_on_kubernetes(rendered, cluster, context, detach=detach, json_=json_)
        return
    if json_:
        print_json(rendered.manifests())
    else:
        sys.stdout.write(as_yaml(rendered.manifests()))
