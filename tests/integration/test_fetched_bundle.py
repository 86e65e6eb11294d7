"""The best edit of a study that ran elsewhere comes from a real MLflow to a laptop, and exports."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.bundles import bundle_of
from tests.support.command_line import Run
from tests.support.made_up_study import made_up_study
from tests.support.mlflow_server import MlflowServer
from tests.support.s3_server import S3Server
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.model import load_model
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.tracking import sync
from tuner.trial.records import StudyResultRecord

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    store = S3Server()
    yield store
    store.end()


@pytest.fixture(scope="module")
def server(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """As on a cluster: artifacts lie in a bucket that only the server can reach."""
    server = MlflowServer(tmp_path_factory.mktemp("server"), store=store)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def shown(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> StudyResultRecord:
    """A study that MLflow shows and whose folder is gone, as after a cluster's end."""
    folder = tmp_path_factory.mktemp("cluster")
    result = made_up_study(folder)
    (winner, *_) = result.winners
    _write_real_bundle(folder / "real")
    place = dict(result.entries[winner.trial].bundles)[winner.epsilon]
    shutil.rmtree(place)
    (folder / "real").rename(place)
    sent = sync(server.uri, "tuner", result, folder)
    assert sent.complete, sent.message
    shutil.rmtree(folder)
    return result


def _write_real_bundle(folder: Path) -> None:
    model = load_model("builtin:neox")
    name, weight = next(
        (name, one)
        for name, one in model.network.named_parameters()
        if one.ndim == 2 and "mlp" in name
    )
    rows, columns = weight.shape
    change = LowRank(torch.full((rows, 1), 1e-3), torch.full((1, columns), 1e-3))
    bundle_of(model, WeightDelta({name: change})).save(folder)


def test_the_best_edit_is_fetched_and_exported(
    run: Run, store: S3Server, server: MlflowServer, shown: StudyResultRecord, tmp_path: Path
) -> None:
    assert any(key.endswith("delta.safetensors") for key in store.keys())  # noqa: SIM118  no dict
    name, (winner, *others) = shown.summary.name, shown.winners
    place = ("--tracking-uri", server.uri)
    out = tmp_path / "best"
    code, told, err = run(
        "fetch", name, str(out), "-e", epsilon_name(winner.epsilon), *place, "--json"
    )
    assert code == 0, err
    assert json.loads(told) == {"study": name, "epsilon": winner.epsilon, "folder": str(out)}
    assert {path.name for path in out.iterdir()} == {"delta.json", "delta.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    code, _, err = run("export", str(out), str(tmp_path / "adapter"), "--format", "peft")
    assert code == 0, err
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()

    code, _, err = run("fetch", name, str(out), *place)
    assert (code, "exists already" in err) == (2, True)
    new = str(tmp_path / "new")
    for arguments, words in (
        ((name, new), "give --epsilon" if others else ""),
        ((name, new, "-e", "0.5"), "has no winner for 0.5"),
        (("demoo", new), "No study in MLflow at"),
    ):
        code, _, err = run("fetch", *arguments, *place)
        assert code == 2
        assert words in err
    assert not (tmp_path / "new").exists()


def test_an_mlflow_that_is_away_is_told(run: Run, tmp_path: Path) -> None:
    code, _, err = run("fetch", "a", str(tmp_path / "a"), "--tracking-uri", "http://127.0.0.1:9")
    assert code == 1
    assert "MLflow at http://127.0.0.1:9" in err
