"""A study becomes a RayJob: the same one each time, and none where it could not run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command_line import Run
from tuner.errors import ConfigError
from tuner.launch import ClusterConfig, as_yaml, cluster_names, legal_name, load_cluster, render
from tuner.search import StudyConfig, load_study


def _cluster(**values: Any) -> ClusterConfig:
    basis: dict[str, Any] = {
        "image": "tuner:0.1.0",
        "workers": [{"name": "gpu", "gpus": 2, "cpu": "4", "most": 3}],
        "mlflow": {"uri": "http://mlflow:5000"},
    }
    return ClusterConfig.model_validate({**basis, **values})


def _study(**values: Any) -> StudyConfig:
    return StudyConfig.model_validate({"task": "country_capital", **values})


def _read_back(study: StudyConfig, cluster: ClusterConfig) -> StudyConfig:
    text = render(study, cluster).config_map.data["study.yaml"]
    return StudyConfig.model_validate(yaml.safe_load(text))


def test_the_driver_reads_the_study_that_was_launched() -> None:
    study = _study(trials=80, seed=3, budget={"epsilons": [1e-3, 1e-5]}, epsilon=1e-5)
    there = _read_back(study, _cluster())
    assert there.identity == study.identity
    assert there.address == "auto"
    assert there.gpus == 1.0
    assert there.worker_count == 6  # three workers of two GPUs each


@pytest.mark.parametrize(
    ("values", "workers", "gpus"),
    [
        ({"trials": 12}, 4, 1.0),
        ({"trials": 2}, 2, 1.0),
        ({"trials": 100, "gpus_per_worker": 0.5}, 12, 0.5),
        ({"trials": 12, "device": "cpu"}, 4, 0.0),
        ({"workers": 5}, 5, 1.0),
    ],
)
def test_trials_at_a_time_follow_from_what_the_workers_have(
    values: dict[str, Any], workers: int, gpus: float
) -> None:
    there = _read_back(_study(**values), _cluster())
    assert (there.workers, there.gpus_per_worker) == (workers, gpus)


def test_equal_studies_give_equal_manifests_and_others_do_not() -> None:
    first = as_yaml(render(_study(), _cluster()).manifests())
    assert first == as_yaml(render(_study(), _cluster()).manifests())
    assert first != as_yaml(render(_study(seed=1), _cluster()).manifests())
    config_map, rayjob = yaml.safe_load_all(first)
    assert config_map["metadata"]["annotations"] == rayjob["metadata"]["annotations"]


def test_the_rayjob_goes_on_after_a_loss_and_ends_by_itself() -> None:
    spec = render(_study(), _cluster()).rayjob.manifest()["spec"]
    assert spec["entrypoint"] == "tuner search /etc/tuner/study/study.yaml"
    assert spec["backoffLimit"] == 3
    assert spec["shutdownAfterJobFinishes"]
    assert spec["preRunningDeadlineSeconds"] == 1800
    assert spec["activeDeadlineSeconds"] == 7 * 24 * 3600
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (0, 0, 3)
    assert "suspend" not in spec


def _containers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "image" in value and "name" in value:
            yield value
        for part in value.values():
            yield from _containers(part)
    elif isinstance(value, list):
        for part in value:
            yield from _containers(part)


def _variables(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in container.get("env", ())}


def test_only_the_head_knows_of_the_ledger_and_mlflow() -> None:
    password = {"secret": "client", "key": "password"}
    username = {"secret": "client", "key": "username"}
    mlflow = {"uri": "http://mlflow:5000", "username": username, "password": password}
    manifest = render(_study(), _cluster(mlflow=mlflow)).rayjob.manifest()
    by_name = {one["name"]: _variables(one) for one in _containers(manifest)}
    assert set(by_name) == {"ray-head", "ray-worker", "ray-job-submitter"}
    head = by_name["ray-head"]
    ledger = {"secretKeyRef": {"name": "tuner-ledger", "key": "url"}}
    assert head["TUNER_STORAGE"] == {"name": "TUNER_STORAGE", "valueFrom": ledger}
    assert head["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "client"
    for other in ("ray-worker", "ray-job-submitter"):
        assert not {"TUNER_STORAGE", "MLFLOW_TRACKING_PASSWORD"} & set(by_name[other])


def test_workers_and_submitter_hold_no_token_for_kubernetes() -> None:
    spec = render(_study(), _cluster()).rayjob.spec
    assert spec.submitter_pod_template is not None
    assert spec.ray_cluster_spec is not None
    assert spec.submitter_pod_template.spec.automount_service_account_token is False
    for group in spec.ray_cluster_spec.worker_group_specs:
        assert group.template.spec.automount_service_account_token is False
    assert spec.ray_cluster_spec.head_group_spec.template.spec.service_account_name == (
        "tuner-search"
    )


def test_a_queue_of_kueue_admits_the_study() -> None:
    manifest = render(_study(), _cluster(queue="research")).rayjob.manifest()
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert manifest["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert manifest["spec"]["suspend"] is True


def test_a_space_of_ones_own_travels_with_the_study(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "editor: lora\nsearch:\n  learning_rate: {type: float, low: 1e-3, high: 1e-2, log: true}\n"
    )
    (tmp_path / "study.yaml").write_text("task: country_capital\nspace: ./mine.yaml\n")
    rendered = render(load_study(tmp_path / "study.yaml"), _cluster())
    assert rendered.config_map.data["mine.yaml"] == (tmp_path / "mine.yaml").read_text()
    there = yaml.safe_load(rendered.config_map.data["study.yaml"])
    assert there["space"] == "/etc/tuner/study/mine.yaml"
    assert str(tmp_path) not in as_yaml(rendered.manifests())


def test_text_and_models_lie_on_disks_of_the_cluster() -> None:
    disks = [{"name": "data", "claim": "research-data", "path": "/data"}]
    study = _study(model="/data/pythia", general="/data/text/web.jsonl")
    rendered = render(study, _cluster(disks=disks))
    spec = rendered.rayjob.spec.ray_cluster_spec
    assert spec is not None
    for group in (spec.head_group_spec, *spec.worker_group_specs):
        mounts = {one.name: one for one in group.ray.volume_mounts or ()}
        assert (mounts["data"].mount_path, mounts["data"].read_only) == ("/data", True)
        assert mounts["studies"].read_only is None


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        ({"storage": "postgresql://me:hush@db/x"}, "storage: must not be set"),
        ({"address": "ray://there:10001"}, "address: must not be set"),
        ({"model": "/home/me/model"}, "model: /home/me/model must be a name, or lie on a disk"),
        ({"general": "/home/me/text.jsonl"}, "the cluster does not see the files of this machine"),
        ({"task": "./my-task"}, "task: ./my-task must be a name"),
        ({"workers": 7}, "7 are asked for and 6 fit at most"),
        ({"gpus_per_worker": 4}, "must fit into a worker"),
        ({"space": "lorra"}, "Did you mean 'lora'"),
        ({"constraints": [{"metric": "specificity", "floor": 0.5}]}, "specificity"),
    ],
)
def test_a_study_that_could_not_run_there_is_refused(study: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        render(_study(**study), _cluster())
    assert reason in str(refused.value)
    assert "hush" not in str(refused.value)


def test_a_gpu_is_not_looked_for_where_there_is_none() -> None:
    cluster = _cluster(workers=[{"name": "cpu", "cpu": "2", "most": 2}])
    assert _read_back(_study(), cluster).gpus_per_worker == 0.0
    with pytest.raises(ConfigError, match="must have workers with GPUs"):
        render(_study(device="cuda"), cluster)


@pytest.mark.parametrize(
    "name", ["demo", "A.b_c", "a.b_c", "9lives", "x" * 60, "-", "Ünïcode", "a-", "study-9lives"]
)
def test_names_are_legal(name: str) -> None:
    legal = legal_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", legal)
    assert len(legal) <= 47
    assert legal == legal_name(name)


def test_legal_names_are_kept_and_others_stay_apart() -> None:
    assert legal_name("country-capital") == "country-capital"
    others = ["a.b", "a_b", "A.b", "a-b", "x" * 60, "x" * 61, "9a", "study-9a"]
    assert len({legal_name(name) for name in others}) == len(others)


def test_launch_prints_what_would_be_sent(run: Run, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("name: My_Study\ntask: country_capital\n")
    for cluster in cluster_names():
        code, out, _ = run("launch", str(study), "--cluster", cluster, "--dry-run")
        assert code == 0
        code, as_json, _ = run("launch", str(study), "-c", cluster, "--dry-run", "--json")
        assert code == 0
        assert json.loads(as_json) == list(yaml.safe_load_all(out))
        kinds = [one["kind"] for one in json.loads(as_json)]
        assert kinds == ["ConfigMap", "RayJob"]


def test_launch_says_what_is_wrong(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    study = tmp_path / "study.yaml"
    study.write_text("task: country_capital\n")
    code, _, err = run("launch", str(study), "--cluster", "nowhere", "--dry-run")
    assert code == 2
    assert "No cluster is called 'nowhere'" in err
    code, _, err = run("launch", str(study), "--cluster", "local")
    assert code == 2
    assert "There is no Kubernetes cluster to talk to" in err


def test_presets_are_read_as_written() -> None:
    assert load_cluster("gpu-cloud").workers[0].tolerations[1].value == "true"
