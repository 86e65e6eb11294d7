"""One study while everything around it is taken away: nodes, driver, MLflow, PostgreSQL."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr
from safetensors.torch import load_file

from tests.support.mlflow_server import MlflowServer
from tests.support.postgres_server import PostgresServer
from tests.support.ray_nodes import RayNodes
from tests.support.search_world import make_world, tiny_config
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger
from tuner.trial.records import TrialState

mlflow = pytest.importorskip("mlflow")
pytestmark = [pytest.mark.alone, pytest.mark.thorough]

TRIALS = 30  # enough for a quick machine to be in the middle at the last kill
_WITHIN_S = 480.0


class Service:
    """A cluster of three nodes, a ledger and a tracking server, each of which can be taken away."""

    def __init__(self, folder: Path, exits: ExitStack) -> None:
        self.folder = folder
        self.studies = folder / "studies"
        world = make_world(folder / "world")
        self.database = PostgresServer()
        exits.callback(self.database.end)
        for name in ("runs", "users"):
            self.database.add_database(name)
        self.tracking = MlflowServer(
            folder / "mlflow", (self.database.url("runs"), self.database.url("users"))
        )
        exits.callback(self.tracking.kill)
        self.tracking.start()
        self.nodes = RayNodes()
        exits.callback(self.nodes.end)
        self.nodes.add_worker()
        self.nodes.add_worker()
        config = tiny_config(
            world, TRIALS, workers=2, address=self.nodes.address, test_seeds=1, confirm_top=1
        )
        (folder / "study.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        self.log = (folder / "driver.log").open("wb")
        exits.callback(self.log.close)

    def drive(self) -> subprocess.Popen[bytes]:
        """Start the driver, as a cluster starts it again: from nothing but the study's YAML."""
        return subprocess.Popen(
            [sys.executable, "-m", "tuner", "search", "study.yaml", "--json"],
            cwd=self.folder,
            env=self.environment,
            stdout=(self.folder / "result.json").open("wb"),
            stderr=self.log,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a driver is given: addresses and logins."""
        return self.nodes.environment | {
            "TUNER_STUDIES": str(self.studies),
            "TUNER_STORAGE": self.database.url(),
            "MLFLOW_TRACKING_URI": self.tracking.uri,
            "MLFLOW_TRACKING_USERNAME": self.tracking.user,
            "MLFLOW_TRACKING_PASSWORD": self.tracking.password,
            "TUNER_CACHE": str(self.folder / "cache"),
        }

    def said(self) -> str:
        """What drivers have written so far."""
        return (self.folder / "driver.log").read_text(errors="replace")

    def finished(self) -> int:
        """How many trials the workers have left behind."""
        return len(list(self.studies.glob("tiny/trials/[0-9]*/record.json")))

    def wait_for(
        self, what: str, holds: Callable[[], bool], driver: subprocess.Popen[bytes]
    ) -> None:
        deadline = time.monotonic() + _WITHIN_S
        while not holds():
            assert driver.poll() is None, f"ended before {what}:\n{self.said()[-3000:]}"
            assert time.monotonic() < deadline, f"no sign of {what}:\n{self.said()[-3000:]}"
            time.sleep(0.1)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as exits:
        yield Service(tmp_path, exits)


def test_a_study_survives_all_that_is_around_it(service: Service) -> None:
    driver = service.drive()
    service.wait_for("the first trials", lambda: service.finished() >= 2, driver)

    service.nodes.kill_worker()
    service.nodes.add_worker()
    at = service.finished()
    service.wait_for("a trial after a node was lost", lambda: service.finished() >= at + 2, driver)

    service.tracking.kill()
    away = time.monotonic()
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    driver = service.drive()
    at = service.finished()
    service.wait_for(
        "a trial after the driver was killed", lambda: service.finished() >= at + 2, driver
    )

    service.database.stop()
    time.sleep(5)
    service.database.start()
    at = service.finished()
    service.wait_for(
        "a trial after the database was away", lambda: service.finished() >= at + 2, driver
    )
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)

    driver = service.drive()
    at = service.finished()
    service.wait_for("a trial after the second kill", lambda: service.finished() >= at + 1, driver)
    service.nodes.kill_worker()
    service.nodes.add_worker()
    time.sleep(max(0.0, 60 - (time.monotonic() - away)))
    service.tracking.start()
    assert driver.wait(_WITHIN_S) == 0, service.said()[-3000:]

    _each_trial_is_told_once(service)
    # On a quick machine the driver may end while MLflow is still away, and says what to do then.
    _run(service, "status", "tiny", "--sync")
    _each_trial_has_one_run(service)
    _the_best_delta_is_there(service)
    for secret in (service.database.password, service.tracking.password):
        assert secret not in service.said()


def _each_trial_is_told_once(service: Service) -> None:
    ledger = Ledger.read(
        StudyFolder(service.studies / "tiny"), "tiny", SecretStr(service.database.url())
    )
    entries = ledger.trials()
    assert [entry.number for entry in entries] == list(range(TRIALS))
    # None was counted as failed for what happened around it.
    assert Counter(entry.state for entry in entries) == {TrialState.COMPLETED: TRIALS}
    assert all("budget" in trial.constraints for trial in ledger.history())


def _each_trial_has_one_run(service: Service) -> None:
    login = {
        "MLFLOW_TRACKING_USERNAME": service.tracking.user,
        "MLFLOW_TRACKING_PASSWORD": service.tracking.password,
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in login.items():
            patch.setenv(key, value)
        client = mlflow.MlflowClient(service.tracking.uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        runs = client.search_runs(experiments, max_results=1000)
    uids = [run.data.tags["tuner.uid"].rpartition("/")[2] for run in runs]
    assert sorted(uids) == sorted([*map(str, range(TRIALS)), "study"])
    alive = [run.data.tags for run in runs if run.info.status != "FINISHED"]
    assert not alive, service.said()[-3000:]


def _the_best_delta_is_there(service: Service) -> None:
    result = json.loads((service.folder / "result.json").read_text())
    assert result["result"]["winners"]
    # From the cluster's disk, and as on a laptop that sees nothing but MLflow.
    _run(service, "fetch", "tiny", "fetched", "--epsilon", "0.01")
    for bundle, adapter in (("tiny", "adapter"), ("fetched", "fetched-adapter")):
        _run(service, "export", bundle, adapter, "--epsilon", "0.01", "--format", "peft")
        weights = load_file(service.folder / adapter / "adapter_model.safetensors")
        assert any(weight.abs().max() > 0 for weight in weights.values())


def _run(service: Service, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments],
        cwd=service.folder,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
