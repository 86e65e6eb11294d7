"""What a Ray cluster says of a study, in words; and what is sent to it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command_line import Run
from tuner.errors import ClusterError, ConfigError, TunerError
from tuner.launch.checks import check_installed
from tuner.launch.ray.backend import describe, placed
from tuner.launch.ray.job_client import JobState, RayJobs, SeenJob, SeenNode, check_address
from tuner.launch.ray.package import pack
from tuner.launch.status import LaunchState
from tuner.search import StudyConfig, load_space, load_study
from tuner.search.outside import outside_modules

ADDRESS = "http://head:8265"
WHEN = datetime(2026, 11, 26, tzinfo=UTC)


def _job(state: str, number: int = 1, message: str = "", exit_code: int | None = None) -> SeenJob:
    return SeenJob(
        id=f"a-study.{number}",
        state=JobState(state),
        message=message,
        exit_code=exit_code,
        metadata={"tuner_study": "a_study", "tuner_content": "0"},
        began=state != "PENDING",
        started=WHEN,
        ended=None,
    )


@pytest.mark.parametrize(
    ("job", "state", "words"),
    [
        (_job("PENDING", message="It waits."), LaunchState.STARTING, "has not started its driver"),
        (_job("RUNNING"), LaunchState.RUNNING, "the search runs"),
        (_job("STOPPED"), LaunchState.STOPPED, "stopped; its trials are in the ledger"),
        (_job("SUCCEEDED"), LaunchState.COMPLETED, "completed"),
        (_job("FAILED", exit_code=2), LaunchState.FAILED, "exit code 2; see `tuner logs`"),
        (_job("FAILED", exit_code=127), LaunchState.FAILED, "has no command `tuner`; install"),
        (_job("FAILED", message="The node\ndied."), LaunchState.FAILED, "failed: The node died."),
        (_job("FAILED"), LaunchState.FAILED, "no reason given"),
        (
            _job(
                "FAILED",
                message="No file:\nTraceback (most recent call last):\n  at\nIOError: y",
            ),
            LaunchState.FAILED,
            "failed: No file: IOError: y",
        ),
    ],
)
def test_every_status_is_told_in_words(job: SeenJob, state: LaunchState, words: str) -> None:
    study = describe([job], ADDRESS)
    assert study.state is state
    assert words in study.words
    assert (study.name, study.study, study.place) == ("a-study", "a_study", ADDRESS)
    assert study.reasons == (("It waits.",) if state is LaunchState.STARTING else ())


def test_ray_has_no_other_status() -> None:
    job_submission = pytest.importorskip("ray.job_submission")
    assert {str(one) for one in job_submission.JobStatus} == set(JobState)


def test_attempts_are_counted() -> None:
    study = describe([_job("FAILED"), _job("STOPPED", 2), _job("RUNNING", 3)], ADDRESS)
    assert (study.attempts, study.lost_attempts) == (3, 1)
    assert not study.rests


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("head:8265", "such as http://head:8265"),
        ("ray://head:10001", "such as http://head:8265"),
        ("http://", "such as http://head:8265"),
        ("http://me:hush@head:8265", "no password"),
    ],
)
def test_an_address_is_checked(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_address(address)
    assert words in str(refused.value)
    assert "hush" not in str(refused.value)
    assert check_address("https://head/") == "https://head"


@contextmanager
def _server(answers: dict[str, Any]) -> Iterator[str]:
    """A server on loopback that knows a few paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path)
            self.send_response(200 if answer is not None else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _refusal(address: str) -> TunerError:
    with pytest.raises(TunerError) as refused:
        asyncio.run(RayJobs.connect(address))
    return refused.value


def test_who_is_no_job_server_is_told_apart() -> None:
    pytest.importorskip("ray.job_submission")
    gone = _refusal("http://127.0.0.1:9")
    assert isinstance(gone, ClusterError)
    assert "cannot be reached" in str(gone)
    assert "ray[default]" in str(gone)
    with _server({}) as address:
        assert "no job server of Ray" in str(_refusal(address))
    with _server({"/api/version": {"version": "4", "ray_version": "2.9.3"}}) as address:
        assert "has Ray 2.9.3, but tuner needs 2.52" in str(_refusal(address))
    with _server({"/api/version": "hello"}) as address:
        assert isinstance(_refusal(address), ClusterError)


def _world(folder: Path, **values: Any) -> StudyConfig:
    """A study with files of its own."""
    (folder / "mine.yaml").write_text(
        "editor: lora\nsearch:\n  learning_rate: {type: float, low: 1e-3, high: 1e-2, log: true}\n"
    )
    (folder / "text.jsonl").write_text('{"text": "a"}\n')
    study = {"name": "My_Study", "task": "country_capital", "space": "mine.yaml"}
    study |= {"general": "text.jsonl"}
    (folder / "study.yaml").write_text(yaml.safe_dump(study | values))
    return load_study(folder / "study.yaml")


def test_files_of_a_study_travel_and_nothing_of_this_machine_is_named(tmp_path: Path) -> None:
    package = pack(_world(tmp_path))
    assert list(package.files) == ["general/text.jsonl", "space/mine.yaml"]
    assert str(tmp_path) not in json.dumps(package.preview())
    (there := tmp_path / "there").mkdir()
    package.write(there, package.study)
    read = load_study(there / "study.yaml")
    assert (read.space, read.general) == (
        str(there / "space/mine.yaml"),
        str(there / "general/text.jsonl"),
    )
    assert read.address == "auto"
    first = package.content
    assert first == pack(_world(tmp_path)).content
    assert first != pack(_world(tmp_path, seed=1)).content
    (tmp_path / "text.jsonl").write_text('{"text": "b"}\n')
    assert first != pack(load_study(tmp_path / "study.yaml")).content


def test_modules_of_the_classes_that_a_study_names_travel_unless_they_are_installed(
    tmp_path: Path,
) -> None:
    metric = (
        "class Length(Metric):\n    label = 'words said'\n    is_measured_on = measure = None\n"
    )
    package = tmp_path / "my_travelling_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "metrics.py").write_text(f"from tuner.evaluation.metrics import Metric\n{metric}")
    study = _world(tmp_path, metrics=["my_travelling_package.metrics:Length"])
    assert outside_modules(study, load_space(study.space)) == (package.resolve(),)
    with pytest.raises(ConfigError, match="must be in the cluster's image"):
        check_installed(study, study.space)
    installed = study.model_copy(update={"metrics": ("json:JSONDecoder", "torch:Tensor")})
    assert outside_modules(installed, load_space(study.space)) == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"storage": "postgresql://me:hush@db/x"}, "set TUNER_STORAGE in the environment"),
        ({"address": "ray://there:10001"}, "address: must not be set"),
        ({"general": "nowhere.txt"}, "general: nowhere.txt is not here"),
        ({"task": "country_captial"}, "Did you mean 'country_capital'"),
        ({"task": "./no/task"}, "is not here"),
        ({"space": "lorra"}, "Did you mean 'lora'"),
        ({"constraints": [{"metric": "specificity", "floor": 0.5}]}, "specificity"),
    ],
)
def test_what_could_not_run_there_is_refused(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    study = _world(tmp_path, **values)
    with pytest.raises(TunerError) as refused:
        pack(study)
    assert words in str(refused.value)
    assert "hush" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_paths_of_the_cluster_stay_as_they_are(tmp_path: Path) -> None:
    package = pack(_world(tmp_path, general="/data/web.jsonl", model="/data/pythia"))
    assert (package.study.general, package.study.model) == ("/data/web.jsonl", "/data/pythia")
    assert list(package.files) == ["space/mine.yaml"]


@pytest.mark.parametrize(
    ("nodes", "values", "expected"),
    [
        ([SeenNode(0, 0), SeenNode(2, 0)], {}, (2, 0.0)),
        ([SeenNode(8, 2)], {}, (2, 1.0)),
        ([SeenNode(8, 2)], {"gpus_per_worker": 0.5}, (4, 0.5)),
        ([SeenNode(8, 2)], {"device": "cpu"}, (4, 0.0)),
        ([], {"workers": 3}, (3, 0.0)),
    ],
)
def test_trials_at_a_time_follow_from_the_nodes(
    nodes: list[SeenNode], values: dict[str, Any], expected: tuple[int, float]
) -> None:
    study = placed(StudyConfig(task="country_capital", **values), nodes, "the Ray cluster")
    assert (study.workers, study.gpus_per_worker) == expected
    with pytest.raises(ConfigError, match="must have room for a trial"):
        placed(StudyConfig(task="country_capital"), [SeenNode(0, 0)], "the Ray cluster")


def test_a_dry_run_asks_nobody(run: Run, tmp_path: Path) -> None:
    _world(tmp_path)
    place = ("--ray-address", "http://127.0.0.1:9")
    code, out, _ = run("launch", str(tmp_path / "study.yaml"), *place, "--dry-run")
    assert code == 0
    code, as_json, _ = run("launch", str(tmp_path / "study.yaml"), *place, "--dry-run", "--json")
    (job,) = json.loads(as_json)
    assert [job] == list(yaml.safe_load_all(out))
    assert job["submission_id"].startswith("my-study-")
    assert job["submission_id"].endswith(".1")
    assert job["entrypoint"].endswith('exec tuner search "$home/study.yaml"')
    assert job["files"] == ["study.yaml", "general/text.jsonl", "space/mine.yaml"]


@pytest.mark.parametrize("verb", ["launch", "logs", "resume"])
def test_a_place_must_be_named_and_only_one(
    verb: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNER_CLUSTER", raising=False)
    _world(tmp_path)
    which = str(tmp_path / "study.yaml")
    code, _, err = run(verb, which)
    assert (code, "One of --cluster" in err) == (2, True)
    both = ("--cluster", "local", "--ray-address", ADDRESS)
    code, _, err = run(verb, which, *both)
    assert (code, "must not be given together" in err) == (2, True)
    code, _, err = run("status", "a", *both)
    assert (code, "must not be given together" in err) == (2, True)
    code, _, err = run("stop", "a", "--ray-address", ADDRESS, "--context", "mine")
    assert (code, "--context must go with --cluster" in err) == (2, True)
