"""The runs of one study as MLflow holds them: found by tag, made once, brought up to date."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import ClusterError, ConfigError, TunerError
from tuner.tracking.content import STUDY_TAG, UID_TAG, Point, RunContent
from tuner.tracking.database_file import make_database_file
from tuner.tracking.location import artifact_root, is_database, masked
from tuner.tracking.view import VIEW_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

SYNCED_TAG = "tuner.synced"
_PARENT_TAG = "mlflow.parentRunId"
_PAGE = 1000
_METRICS_PER_CALL = 500
_TAGS_PER_CALL = 80

# What a server answers when asking again would not help.
_FINAL_CODES = frozenset(
    "INVALID_PARAMETER_VALUE INVALID_STATE PERMISSION_DENIED UNAUTHENTICATED "
    "CUSTOMER_UNAUTHORIZED RESOURCE_ALREADY_EXISTS FEATURE_DISABLED ENDPOINT_NOT_FOUND".split()
)


@dataclass
class _Known:
    run_id: str
    params: set[str]
    synced: str | None
    deleted: bool
    logged: set[Point] = field(default_factory=set)


class StudyRuns:
    """One study's runs in one MLflow experiment.

    Every write may be repeated: a run is found again by its tag, identical metrics and tags
    change nothing, and the tag that says "up to date" is written last.
    """

    def __init__(self, uri: str, experiment: str, study: str, studies: Path) -> None:
        """Connect, and read which runs the study has already.

        Raises:
            ClusterError: MLflow is out of reach for now.
            ConfigError: MLflow refuses, and will go on refusing.
        """
        self._uri = uri
        self._study = study
        with translated(uri):
            self._client = open_client(uri)
            self.experiment_id = self._experiment_id(experiment, artifact_root(studies))
            self._views: dict[str, str] = {}
            self._known = {run.data.tags[UID_TAG]: _known(run) for run in self._search()}

    def has(self, uid: str) -> bool:
        """Return whether a run carries this tag."""
        return uid in self._known

    @property
    def run_ids(self) -> dict[str, str]:
        """The run of every unit of the study that has one, by its tag."""
        return {uid: known.run_id for uid, known in self._known.items() if not known.deleted}

    def shows(self, content: RunContent) -> bool:
        """Return whether the run exists and is up to date."""
        known = self._known.get(content.uid)
        return known is not None and not known.deleted and known.synced == content.digest

    def ensure(self, content: RunContent, parent: str | None = None) -> str:
        """Return the id of the content's run, made now if there is none.

        Raises:
            ClusterError: MLflow is out of reach for now.
            ConfigError: MLflow refuses, or the run was deleted there.
        """
        known = self._known.get(content.uid)
        if known is None:
            # The tags go with the creation: a run can never exist without the tag that finds it.
            tags = dict(content.tags) | ({_PARENT_TAG: parent} if parent else {})
            with translated(self._uri):
                run = self._client.create_run(
                    self.experiment_id,
                    start_time=content.started_ms,
                    tags=tags,
                    run_name=content.name,
                )
            known = self._known[content.uid] = _known(run)
        if known.deleted:
            raise ConfigError(
                f"The run {content.name!r} was deleted in MLflow and stays deleted. To have it "
                f"back: mlflow runs restore --run-id {known.run_id}, then sync the study."
            )
        return known.run_id

    def write(self, content: RunContent, parent: str | None = None) -> None:
        """Bring the content's run up to date.

        Raises:
            ClusterError: MLflow is out of reach for now; the run is not marked as up to date.
            ConfigError: MLflow refuses, or the run was deleted there.
        """
        run_id = self.ensure(content, parent)
        known = self._known[content.uid]
        gone = [path for path, _ in content.artifacts if not path.exists()]
        with translated(self._uri):
            self._log(run_id, content, known)
            for path, where in content.artifacts:
                if path in gone:
                    continue
                if path.is_dir():
                    self._client.log_artifacts(run_id, str(path), where)
                else:
                    self._client.log_artifact(run_id, str(path), where)
            if content.status in ("FINISHED", "FAILED", "KILLED"):
                self._client.set_terminated(run_id, content.status, content.ended_ms)
            else:
                self._client.update_run(run_id, status=content.status)
            if gone:
                raise ConfigError(f"{content.name!r} lacks {gone[0]}, which is no longer there.")
            self._client.set_tag(run_id, SYNCED_TAG, content.digest)
        known.synced = content.digest

    def offer_view(self, key: str, state: str) -> None:
        """Let an address with `key` open MLflow's pages in the given state.

        Raises:
            ClusterError: MLflow is out of reach for now.
            ConfigError: MLflow refuses.
        """
        if self._views.get(key) == state:
            return
        with translated(self._uri):
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG + key, state)
        self._views[key] = state

    def _log(self, run_id: str, content: RunContent, known: _Known) -> None:
        from mlflow.entities import Metric, Param, RunTag

        # MLflow never changes a parameter once it is set, and neither does a trial.
        params = [Param(k, v) for k, v in content.params.items() if k not in known.params]
        tags = [RunTag(name, text) for name, text in content.tags.items()]
        tags.append(RunTag("mlflow.runName", content.name))
        for start in range(0, max(len(params), len(tags)), _TAGS_PER_CALL):
            end = start + _TAGS_PER_CALL
            self._client.log_batch(run_id, params=params[start:end], tags=tags[start:end])
        known.params |= content.params.keys()
        points = [point for point in content.points if point not in known.logged]
        for start in range(0, len(points), _METRICS_PER_CALL):
            part = points[start : start + _METRICS_PER_CALL]
            metrics = [Metric(p.key, p.value, p.at_ms, p.step) for p in part]
            self._client.log_batch(run_id, metrics=metrics)
            known.logged.update(part)

    def _experiment_id(self, name: str, artifacts: Path) -> str:
        from mlflow.exceptions import MlflowException

        experiment: Experiment | None = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = artifacts.as_uri() if is_database(self._uri) else None
            try:
                # The tag spares the reader a dialogue about which kind of project this is.
                created: str = self._client.create_experiment(
                    name,
                    artifact_location=location,
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
                return created
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(name)  # another driver was first
        if experiment.lifecycle_stage == "deleted":
            raise ConfigError(
                f"The MLflow experiment {name!r} was deleted. To have it back: mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}. Or choose another name."
            )
        return str(experiment.experiment_id)

    def _search(self) -> Iterator["Run"]:
        """Yield the study's runs, deleted ones too, the oldest last where two share a tag."""
        from mlflow.entities import ViewType

        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{STUDY_TAG}` = '{self._study}'",
                run_view_type=ViewType.ALL,
                max_results=_PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return


def _known(run: "Run") -> _Known:
    tags = run.data.tags
    deleted = run.info.lifecycle_stage == "deleted"
    return _Known(run.info.run_id, set(run.data.params), tags.get(SYNCED_TAG), deleted)


def open_client(uri: str) -> "MlflowClient":
    """Return a client of MLflow at a URI; a database that is not there yet is made."""
    from mlflow import MlflowClient

    make_database_file(uri)
    return MlflowClient(uri)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises into "try again later" or "this will not work".

    Raises:
        ClusterError: MLflow is out of reach for now.
        ConfigError: asking again would not help.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except TunerError:
        raise
    except MlflowException as error:
        # Some of MLflow's messages go on for a page; what happened stands in the first lines.
        text = masked(re.split(r"\n\n|\n\[SQL", str(error).strip())[0])[:400]
        if error.error_code in _FINAL_CODES:
            raise ConfigError(f"MLflow at {masked(uri)} refuses: {text}") from None
        raise ClusterError(f"MLflow at {masked(uri)} does not answer: {text}") from None
    except Exception as error:
        # Drivers, sockets and disks raise types of their own. None of them may end a search.
        text = masked(f"{type(error).__name__}: {error}")[:500]
        raise ClusterError(f"MLflow at {masked(uri)} cannot be written: {text}") from None
