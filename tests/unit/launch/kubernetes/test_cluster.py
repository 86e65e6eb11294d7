from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clone import ROOT
from tuner.errors import ConfigError
from tuner.launch import cluster_names, load_cluster

BASIS: dict[str, Any] = {
    "image": "tuner:0.1.0",
    "workers": [{"name": "cpu", "most": 2}],
    "mlflow": {"uri": "http://mlflow:5000"},
}


def _write(folder: Path, **values: Any) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({**BASIS, **values}, sort_keys=False))
    return str(path)


def test_a_cluster_needs_little_to_be_described(tmp_path: Path) -> None:
    cluster = load_cluster(_write(tmp_path))
    assert cluster.namespace == "tuner"
    assert cluster.workers[0].least == 0
    assert cluster.ledger.secret == "tuner-ledger"
    assert cluster.studies.claim == "tuner-studies"


def test_there_is_a_cluster_for_every_overlay() -> None:
    assert cluster_names() == ("existing-kuberay", "gpu-cloud", "local")
    for name in cluster_names():
        assert load_cluster(name).namespace == "tuner"
    with pytest.raises(ConfigError, match="Did you mean 'local'"):
        load_cluster("locl")


def test_the_ray_of_the_images_is_the_one_that_is_pinned() -> None:
    pinned = (ROOT / "requirements" / "cluster.txt").read_text()
    for name in cluster_names():
        assert f"\nray=={load_cluster(name).ray_version} " in pinned


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"image": "tuner:latest"}, "an image must be pinned"),
        ({"namespace": "My_Space"}, "DNS-1123"),
        ({"head": {"memory": "2Gi"}}, "at least 4Gi"),
        ({"head": {"cpu": 0}}, "more than nothing"),
        ({"workers": []}, "at least 1 item"),
        ({"workers": [{"name": "gpu", "most": 0}]}, "greater than 0"),
        ({"workers": [{"name": "gpu", "most": 1, "least": 2}]}, "`least` must not exceed `most`"),
        ({"workers": [{"name": "gpu", "most": 1, "cpu": "500m"}]}, "at least one cpu"),
        ({"workers": [{"name": "a", "most": 1}] * 2}, "a name of its own"),
        ({"mlflow": {"uri": "sqlite:///mlflow.db"}}, "must be a server's"),
        ({"mlflow": {"uri": "ftp://mlflow"}}, "must begin with one of http"),
        (
            {"mlflow": {"uri": "http://m", "username": {"secret": "s", "key": "u"}}},
            "both `username` and `password`",
        ),
        ({"user": 0}, "greater than 0"),
        ({"deadline_s": 60}, "must exceed `start_deadline_s`"),
        ({"disks": [{"name": "cache", "claim": "c", "path": "/c"}]}, "must not be called"),
        ({"disks": [{"name": "c", "claim": "c", "path": "/studies"}]}, "a path of its own"),
        (
            {"studies": {"name": "studies", "claim": "c", "path": "/s"}},
            "must have `read_only: false`",
        ),
        ({"replicas": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_cluster_is_refused_with_file_and_line(
    values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = _write(tmp_path, **values)
    with pytest.raises(ConfigError) as refused:
        load_cluster(path)
    assert reason in str(refused.value)
    assert str(refused.value).startswith(f"{path}:")


def test_the_line_of_a_mistake_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "image: tuner:0.1.0\n"
        "workers:\n"
        "  - {name: gpu, most: 4}\n"
        "  - {name: cpu, most: none}\n"
        "mlflow: {uri: http://mlflow:5000}\n"
        "user: 0\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_cluster(str(path))
    lines = str(refused.value).splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [f"{path}:4", f"{path}:6"]


@pytest.mark.parametrize(
    "values",
    [
        {"mlflow": {"uri": "http://me:hush@mlflow:5000"}},
        {"environment": {"HF_TOKEN": "hush"}},
        {"environment": {"DATABASE": "postgresql://me:hush@host/db"}},
        {"mlflow": {"uri": "http://mlflow:5000", "username": "me", "password": "hush"}},
        {"ledger": "postgresql://me:hush@host/db"},
    ],
)
def test_no_secret_is_taken_or_repeated(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_cluster(_write(tmp_path, **values))
    assert next(iter(values)) in str(refused.value)
    assert "hush" not in str(refused.value)
