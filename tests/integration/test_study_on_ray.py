"""A study is launched on a real Ray cluster, stopped and resumed, and comes to its end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.authentication_test_utils import (
    authentication_env_guard,
    reset_auth_token_state,
    set_auth_mode,
    set_env_auth_token,
)
from ray.job_submission import JobSubmissionClient

from tests.support.command_line import Run
from tests.support.ray_head import RayHead
from tests.support.search_world import make_world
from tuner.launch.ray.package import pack
from tuner.search import load_study, open_study
from tuner.trial.records import TrialState

NAME = "a-study"
_PATIENCE_S = 400.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "world")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head whose token this process knows, and forgets again."""
    head = RayHead(tmp_path_factory.mktemp("studies"))
    with authentication_env_guard():
        set_auth_mode("token")
        set_env_auth_token(head.token)
        reset_auth_token_state()
        try:
            head.start()
            yield head
        finally:
            head.kill()
    reset_auth_token_state()


def _write(world: Path, **values: Any) -> str:
    """Write a study whose space, task and text lie beside it, and whose model is there."""
    study = {"name": NAME, "model": str(world / "model"), "device": "cpu", "trials": 3}
    study |= {"task": str(world / "task"), "general": "general.txt", "space": "space.yaml"}
    study |= {"budget": {"epsilons": [1e-2]}, "confirm_top": 1, "test_seeds": 0}
    path = world / "study.yaml"
    path.write_text(yaml.safe_dump(study | values))
    return str(path)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_study_goes_from_yaml_to_result_over_a_stop(run: Run, head: RayHead, world: Path) -> None:
    place = ("--ray-address", head.address)
    code, _, err = run("launch", _write(world), *place, "--detach")
    assert code == 0, err
    assert f"Sent to the Ray cluster at {head.address}" in err
    assert f"tuner status {NAME} {place[0]} {place[1]} --follow" in err
    _until(lambda: "Searching" in run("logs", NAME, *place)[1])

    code, _, err = run("launch", _write(world), *place, "--detach")
    assert (code, "nothing was sent" in err) == (0, True)
    code, _, err = run("launch", _write(world, trials=4), *place)
    assert (code, "with other content runs on" in err) == (2, True)

    code, out, _ = run("stop", NAME, *place, "--json")
    assert code == 0
    assert json.loads(out) == {"study": NAME, "stopped": True, "state": "stopped"}
    code, _, err = run("launch", _write(world), *place)
    assert code == 1  # launching does not resume
    assert "tuner resume" in err

    code, out, err = run("resume", NAME, *place, "--json")
    assert code == 0, err
    assert f"{NAME} goes on" in err
    assert "Finished" in err
    told = json.loads(out)
    assert (told["state"], told["attempts"], told["place"]) == ("completed", 2, head.address)
    assert [one["study"] for one in json.loads(run("status", *place, "--json")[1])] == [NAME]
    assert run("logs", NAME, *place, "--follow", "--tail", "3")[1].count("\n") == 3

    entries = open_study(head.studies / NAME).record.entries
    assert [entry.number for entry in entries] == [0, 1, 2]
    assert {entry.state for entry in entries} == {TrialState.COMPLETED}


def test_a_driver_that_fails_is_told_in_words(run: Run, head: RayHead, world: Path) -> None:
    place = ("--ray-address", head.address)
    study = _write(world, name="lost", task="/nowhere/task")
    code, _, err = run("launch", study, *place)
    assert code == 1
    assert "/nowhere/task" in err  # what the driver said
    assert "lost: failed: the search ended with exit code 2; see `tuner logs`" in err


def test_a_study_that_never_began_is_sent_again(run: Run, head: RayHead, world: Path) -> None:
    place = ("--ray-address", head.address)
    path = _write(world, name="late", trials=1)
    package = pack(load_study(Path(path)))
    client = JobSubmissionClient(head.address)
    # Files that the cluster has lost before the driver began.
    client.submit_job(
        entrypoint=package.entrypoint,
        submission_id="late.1",
        metadata=dict(package.metadata),
        runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"},
    )
    code, _, err = run("status", "late", *place, "--follow")
    assert (code, "late: failed" in err) == (1, True)
    code, _, err = run("resume", "late", *place)
    assert (code, "before its files arrived" in err) == (2, True)
    code, out, err = run("launch", path, *place, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["state"], told["attempts"]) == ("completed", 2)


def test_a_wrong_token_and_a_missing_one_are_refused(head: RayHead) -> None:
    for token in ("0" * 64, ""):
        done = subprocess.run(
            [sys.executable, "-m", "tuner", "status", "--ray-address", head.address],
            env=os.environ | {"RAY_AUTH_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
        assert done.returncode == 1
        assert "its token is missing or wrong" in done.stderr
        assert "0" * 64 not in done.stderr
        assert head.token not in done.stderr


def test_no_secret_is_written_on_a_job(run: Run, head: RayHead, world: Path) -> None:
    study = _write(world, storage="postgresql://me:hush@db/x")
    code, out, err = run("launch", study, "--ray-address", head.address)
    assert code == 2
    assert "TUNER_STORAGE" in err
    assert "hush" not in out + err


def test_what_is_not_known_there_is_refused(run: Run, head: RayHead) -> None:
    place = ("--ray-address", head.address)
    for verb in ("status", "logs", "stop", "resume"):
        code, _, err = run(verb, "another", *place)
        assert code == 2
        assert "No study on the Ray cluster at" in err
    code, _, err = run("stop", NAME, *place, "--delete")
    assert (code, "--delete must go with --cluster" in err) == (2, True)
    code, _, err = run("logs", NAME, *place, "--of", "head")
    assert (code, "--of must be driver" in err) == (2, True)
