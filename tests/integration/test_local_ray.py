"""A search on this machine: who may listen and read, and how it ends when Ray or it is hurt."""

import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support import hungry
from tests.support.ray_faults import (
    JumpingClock,
    Terminal,
    can_limit_memory,
    can_unshare,
    ended_trials,
    environment,
    listeners,
    lose,
    memory_limit,
    outer_address,
    search_command,
    terminate,
    until,
    with_small_shared_memory,
    within,
)
from tests.support.search_world import make_world
from tuner.search import StudyResult, open_study
from tuner.trial.records import TrialState

pytestmark = pytest.mark.alone

_PATIENCE_S = 400.0
_RAW = ("Traceback", "*** SIG", "core_worker", "rpc_client", "[20")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "world")


def _complete(studies: Path, trials: int) -> StudyResult:
    """The study has each of its trials once, and all have come to their end."""
    result = open_study(studies / "tiny")
    assert [entry.number for entry in result.trials] == list(range(trials))
    assert all(entry.state is TrialState.COMPLETED for entry in result.trials)
    return result


def _ray_processes_in(studies: Path) -> list[str]:
    """Processes that still work for the studies in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(studies) in line:
            found.append(line)
    return found


@dataclass
class Watched:
    """What was seen of a search from outside."""

    code: int = -1
    said: str = ""
    listening: list[tuple[str, str, int]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    folders: dict[Path, os.stat_result] = field(default_factory=dict)
    temporary: Path = Path()
    home: Path = Path()
    studies: Path = Path()


def _come_as_a_stranger(port: int, token: str | None) -> str:
    """What Ray's control store says to who has no token, or a wrong one."""
    ask = (
        f"import ray; ray._raylet.GcsClient(address='127.0.0.1:{port}').internal_kv_keys(b'', b'')"
    )
    variables = {key: value for key, value in environment().items() if "RAY_AUTH" not in key}
    variables |= {"RAY_AUTH_MODE": "disabled"}
    if token is not None:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", ask], env=variables, capture_output=True, text=True, check=False
    )
    return f"{done.returncode}: {done.stderr}"


@pytest.fixture(scope="module")
def watched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A tracked search by a user with a long TMPDIR and another cluster's RAY_ADDRESS."""
    seen = Watched(studies=tmp_path_factory.mktemp("studies"))
    seen.home = tmp_path_factory.mktemp("home")
    seen.temporary = tmp_path_factory.mktemp("temporary") / ("long-" * 12)
    seen.temporary.mkdir()
    variables = environment(
        HOME=str(seen.home), TMPDIR=str(seen.temporary), RAY_ADDRESS="127.0.0.1:1"
    )
    # What MLflow takes for a sign that it is under test.
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "XDG_CONFIG_HOME"):
        variables.pop(name, None)
    log = seen.studies / "log"
    with log.open("wb") as file:
        search = subprocess.Popen(
            search_command(world, seen.studies, 2), env=variables, stdout=file, stderr=file
        )
    try:
        until(lambda: ended_trials(seen.studies) >= 1, search, _PATIENCE_S)
        seen.listening = listeners(search.pid)
        outer = outer_address()
        for _, _, port in seen.listening if outer else ():
            try:
                urllib.request.urlopen(f"http://{outer}:{port}/metrics", timeout=5)
                seen.answers.append(f"{outer}:{port}")
            except urllib.error.HTTPError:
                seen.answers.append(f"{outer}:{port}")
            except OSError:
                pass  # refused, as it should be
        gcs = next(port for who, _, port in seen.listening if "gcs_server" in who)
        seen.strangers = [_come_as_a_stranger(gcs, token) for token in (None, "0" * 64)]
        raylet = next(
            one for one in psutil.Process(search.pid).children() if one.name() == "raylet"
        )
        session = next(
            Path(one.partition("=")[2]) for one in raylet.cmdline() if "session_dir=" in one
        )
        seen.folders = {folder: folder.stat() for folder in session.parents}
        seen.code = search.wait(_PATIENCE_S)
        seen.said = log.read_text()
        yield seen
    finally:
        search.kill()
        search.wait()


def test_a_search_runs_on_this_machine_whatever_ray_address_and_tmpdir_say(
    watched: Watched,
) -> None:
    assert watched.code == 0, watched.said
    _complete(watched.studies, 2)


def test_nothing_of_a_local_search_listens_beyond_loopback(watched: Watched) -> None:
    assert any("gcs_server" in who for who, _, _ in watched.listening)
    assert any("raylet" in who for who, _, _ in watched.listening)
    assert any("ray::" in who for who, _, _ in watched.listening)
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert [one for one in watched.listening if one[1] not in loopback] == []
    assert watched.answers == []


def test_nobody_else_can_enter_the_folder_of_ray(watched: Watched) -> None:
    private = [
        folder
        for folder, found in watched.folders.items()
        if stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.getuid()
    ]
    assert [folder.name.startswith("tuner-ray-") for folder in private] == [True]
    assert not private[0].exists()
    assert list(watched.temporary.iterdir()) == []


def test_a_tracked_search_leaves_nothing_in_the_home_of_its_user(watched: Watched) -> None:
    assert "MLflow:" in watched.said
    assert sorted(path.name for path in watched.home.rglob("*")) == []


def test_whoever_comes_without_the_token_is_not_let_in(watched: Watched) -> None:
    assert [said for said in watched.strangers if "AuthenticationError" not in said] == []
    assert len(watched.strangers) == 2


# Ray is lost


@pytest.mark.thorough
def test_a_search_outlives_the_loss_of_its_ray(world: Path, tmp_path: Path) -> None:
    command = search_command(world, tmp_path, 3, "--no-track")
    # In a process of its own: where the loss meets a call that does not return, Ray is waited for
    # in vain, and the process is ended in words.
    log = tmp_path / "log"
    with log.open("wb") as file:
        search = subprocess.Popen(command, env=environment(), stdout=file, stderr=file)
    until(lambda: ended_trials(tmp_path) >= 1, search, _PATIENCE_S)
    lose(search.pid, "raylet")
    code = search.wait(_PATIENCE_S)
    said = log.read_text()
    assert [raw for raw in _RAW if raw in said] == []
    if code != 0:
        assert code == 130
        assert "the same study, started again, continues there." in said
        done = subprocess.run(
            command, env=environment(), capture_output=True, timeout=_PATIENCE_S, check=False
        )
        assert done.returncode == 0
    _complete(tmp_path, 3)


def test_a_ray_that_would_end_the_process_ends_it_in_words() -> None:
    script = """
import os, secrets, shutil, tempfile
from pathlib import Path
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
import ray
from tests.support.ray_faults import lose
from tuner.search.ray.local_ray import ended_in_words, start_local_ray
folder = Path(tempfile.mkdtemp(dir="/tmp"))
start_local_ray(1, folder)
with ended_in_words(patience_s=2.0):
    lose(os.getpid(), "gcs_server")
    shutil.rmtree(folder, ignore_errors=True)
    ray.cluster_resources()  # does not return, and ends the process after a minute
"""
    variables = environment()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=variables,
        timeout=_PATIENCE_S,
    )
    assert done.returncode == 130
    assert "Error: Ray on this machine was lost: its gcs_server, which was ended by" in done.stderr
    assert done.stderr.strip().endswith("the same study, started again, continues there.")


# The driver is told to end


@pytest.mark.thorough
def test_a_search_is_ended_by_sigterm_and_a_closed_terminal_in_words_and_goes_on(
    world: Path, tmp_path: Path
) -> None:
    command = search_command(world, tmp_path, 4, "--no-track")
    log = tmp_path / "log"
    with log.open("wb") as file:
        search = subprocess.Popen(command, env=environment(), stdout=file, stderr=file)
    until(lambda: ended_trials(tmp_path) >= 1, search, _PATIENCE_S)
    terminate(search.pid)
    assert search.wait(_PATIENCE_S) == 130
    assert "Stopped. All finished trials are kept in" in log.read_text()
    assert [raw for raw in _RAW if raw in log.read_text()] == []

    terminal = Terminal(command, environment())
    until(lambda: bool(terminal.read()) and ended_trials(tmp_path) >= 2, terminal.process, 400)
    terminal.close()
    assert terminal.process.wait(_PATIENCE_S) == 130
    assert not _ray_processes_in(tmp_path)

    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    _complete(tmp_path, 4)


# The machine is short of something


@pytest.mark.thorough
@pytest.mark.skipif(not can_unshare(), reason="needs the right to mount")
def test_a_search_runs_where_shared_memory_is_small(world: Path, tmp_path: Path) -> None:
    command = with_small_shared_memory(search_command(world, tmp_path, 2, "--no-track"))
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [raw for raw in _RAW if raw in done.stderr] == []
    _complete(tmp_path, 2)


@pytest.mark.thorough
@pytest.mark.skipif(not can_limit_memory(), reason="needs the right to limit memory")
def test_trials_that_want_too_much_memory_fail_in_words_and_the_search_goes_on(
    world: Path, tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    rates = "{type: float, low: 1.0e-3, high: 1.0e-1, log: true}"
    space.write_text(f"editor: tests.support.hungry:Hungry\nsearch:\n  learning_rate: {rates}\n")
    variables = environment()
    command = search_command(world, tmp_path, 4, "--no-track", "--space", str(space))
    with memory_limit(5 * 2**30) as group:
        done = subprocess.run(
            within(group, command),
            env=variables,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert [raw for raw in _RAW if raw in done.stderr] == []
    trials = open_study(tmp_path / "tiny").trials
    assert [entry.number for entry in trials] == [0, 1, 2, 3]
    refused, killed = trials[hungry.REFUSED], trials[hungry.KILLED]
    assert refused.failure is not None
    assert refused.failure.startswith("Memory ran out: ")
    assert killed.failure is not None
    assert killed.failure.startswith("Its worker died 3 times. Where memory runs out")
    for entry in (trials[0], trials[3]):
        assert entry.state is TrialState.COMPLETED


@pytest.mark.thorough
def test_a_search_goes_on_when_the_clock_jumps(world: Path, tmp_path: Path) -> None:
    clock = JumpingClock(tmp_path)
    log = tmp_path / "log"
    with log.open("wb") as file:
        search = subprocess.Popen(
            search_command(world, tmp_path, 3, "--no-track"),
            env=environment(**clock.variables),
            stdout=file,
            stderr=file,
        )
    for ended, jump in ((1, 36_000), (2, -36_000)):
        until(lambda ended=ended: ended_trials(tmp_path) >= ended, search, _PATIENCE_S)  # type: ignore[misc]
        clock.jump(jump)
    assert search.wait(_PATIENCE_S) == 0, log.read_text()
    assert [raw for raw in _RAW if raw in log.read_text()] == []
    _complete(tmp_path, 3)
