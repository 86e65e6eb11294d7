"""The verb that brings a study to a cluster: launch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.output import JsonFlag, print_json
from tuner.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: `tuner launch study.yaml --cluster local --dry-run`")(launch)


def launch(
    study: Annotated[Path, typer.Argument(help="A study as YAML.")],
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            "-c",
            help="A cluster as YAML, or one that comes with tuner: local, gpu-cloud or "
            "existing-kuberay.",
            envvar="TUNER_CLUSTER",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Run a study on Kubernetes, as a RayJob whose driver goes on from its ledger.

    Everything is checked by the rules of KubeRay's operator before it is sent.
    """
    from tuner.launch import as_yaml, load_cluster, render
    from tuner.search import load_study

    rendered = render(load_study(study), load_cluster(cluster))
    if not dry_run:
        raise ConfigError(
            "`tuner launch` cannot send yet: give --dry-run, and send what it prints with "
            "`kubectl apply -f -`."
        )
    if json_:
        print_json(rendered.manifests())
    else:
        sys.stdout.write(as_yaml(rendered.manifests()))
