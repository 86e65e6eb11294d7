"""The best edit of a study, brought from MLflow to this machine: it may have run anywhere."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import ConfigError, unknown_name
from tuner.evaluation.deviation.budget import epsilon_label, epsilon_name, epsilon_of_label
from tuner.files.atomic_file import whole_folder
from tuner.files.text_file import exists
from tuner.tracking.content import STUDY_TAG
from tuner.tracking.location import located_uri, masked
from tuner.tracking.runs import open_client, translated
from tuner.tracking.session import brief_requests, quiet_here, require_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1000


def fetch_bundle(
    tracking_uri: str, experiment: str, study: str, epsilon: float | None, out: Path
) -> float:
    """Write the bundle of a study's winner into the new folder `out`; return its budget.

    Where several studies bear the name, the last one to start is meant.

    Raises:
        MissingExtra: MLflow is not installed.
        ConfigError: there is no such study or winner, it is not clear which, `out` exists, or
            MLflow refuses.
        ClusterError: MLflow cannot be reached.
        DiskError: `out` cannot be written.
    """
    require_mlflow()
    if exists(out):
        raise ConfigError(f"{out} exists already: a bundle is written into a new folder.")
    uri = located_uri(tracking_uri, out)
    with brief_requests(), quiet_here(), translated(uri):
        client = open_client(uri)
        stored = client.get_experiment_by_name(experiment)
        if stored is None:
            raise ConfigError(f"MLflow at {masked(uri)} has no experiment {experiment!r}.")
        parent = _study(client, stored.experiment_id, study, uri)
        winners = _winners(client, stored.experiment_id, parent.data.tags[STUDY_TAG])
        chosen = _chosen(winners, study, epsilon)
        with whole_folder(out) as draft:
            run = winners[chosen].info.run_id
            place = f"bundles/{chosen}"
            got = Path(client.download_artifacts(run, place, str(draft)))
            for path in got.iterdir():
                path.rename(draft / path.name)
            # A server's come below `bundles`, those of a disk do not.
            shutil.rmtree(draft / got.resolve().relative_to(draft.resolve()).parts[0])
    return epsilon_of_label(chosen)


def _study(client: "MlflowClient", experiment: str, name: str, uri: str) -> "Run":
    runs = client.search_runs(
        [experiment],
        filter_string="tags.`tuner.kind` = 'study'",
        max_results=_PAGE,
        order_by=["attributes.start_time DESC"],
    )
    named = [run for run in runs if run.info.run_name == name]
    if not named:
        names = {str(run.info.run_name) for run in runs}
        raise unknown_name(f"study in MLflow at {masked(uri)}", name, names)
    return named[0]


def _winners(client: "MlflowClient", experiment: str, uid: str) -> dict[str, "Run"]:
    """Return the run whose trial won, for each budget's label."""
    runs = client.search_runs(
        [experiment],
        filter_string=f"tags.`{STUDY_TAG}` = '{uid}' and tags.winner LIKE '%eps_%'",
        max_results=_PAGE,
    )
    return {label: run for run in runs for label in run.data.tags["winner"].split(", ")}


def _chosen(winners: dict[str, "Run"], study: str, epsilon: float | None) -> str:
    if not winners:
        raise ConfigError(f"The study {study!r} has no winner in MLflow yet.")
    known = ", ".join(map(epsilon_name, sorted(map(epsilon_of_label, winners), reverse=True)))
    if epsilon is not None:
        if epsilon_label(epsilon) not in winners:
            raise ConfigError(
                f"The study {study!r} has no winner for {epsilon_name(epsilon)}; it has {known}."
            )
        return epsilon_label(epsilon)
    if len(winners) > 1:
        raise ConfigError(f"The study {study!r} has winners for {known}: give --epsilon.")
    return next(iter(winners))
