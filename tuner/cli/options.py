"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.old_names import old_option
from tuner.settings import variable

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="builtin:NAME, a local folder or a hub id.")
]
TaskOption = Annotated[str, typer.Option("--task", "-t", help="A task's name or folder.")]
EditsOption = Annotated[
    int | None,
    typer.Option("--edits", min=1, help="Edits made at once; by default what the task says."),
]
GeneralOption = Annotated[
    str | None,
    typer.Option(
        "--general",
        help="General text: a file, one document per line or JSON lines with `text`, or a folder "
        "of such files.",
    ),
]
GeneralTokensOption = Annotated[
    list[str] | None,
    typer.Option(
        "--general-tokens",
        help="Most tokens of a part of the general text, as part=number: search, confirmation, "
        "auxiliary or gradient; repeatable.",
    ),
]
BlockLengthOption = Annotated[
    int | None,
    typer.Option(
        "--block-length",
        min=2,
        help="Tokens per block of general text; by default 512, or the model's context.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of every random choice.")
]
FolderOption = Annotated[
    Path, typer.Option("--folder", "-f", help="Where studies lie.", envvar=variable("studies"))
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
BudgetsOption = Annotated[
    list[float] | None,
    typer.Option("--budget", "-b", help="A budget to keep; give the option again for more."),
]
TwoSidedOption = Annotated[
    bool,
    typer.Option("--two-sided", help="Let a fall of the loss on general text count as a rise."),
]
DivergenceOption = Annotated[
    float | None,
    typer.Option(
        "--divergence",
        help="The most that predictions on general text may move: mean KL in nats per token.",
    ),
]
OldBudgetsOption = Annotated[list[float] | None, old_option("--epsilon", "-e", new="--budget")]
"""Elsewhere `--epsilon` picks one of the budgets that a study or a bundle was made for."""
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="A cluster as YAML, or one that comes with tuner: local, gpu-cloud or "
        "existing-kuberay. Without it and --ray-address, the one in TUNER_CLUSTER.",
    ),
]
LaunchedOnOption = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="Of a study that was launched: its cluster."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="In place of --cluster: the job server of a Ray cluster, as http://head:8265; its "
        "token comes from RAY_AUTH_TOKEN.",
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option("--context", help="A context of KUBECONFIG; by default the current one."),
]
STUDIES = Path("tuner-studies")
