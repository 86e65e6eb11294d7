"""What may befall Ray and its driver during a local search: one function for each fault, all real.

`driver` is the id of the process that runs the study.
"""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.clone import ROOT

_CGROUPS = Path("/sys/fs/cgroup/memory")
_CLOCK = Path(__file__).parent / "jumping_clock"


def search_command(world: Path, studies: Path, trials: int, *options: str) -> list[str]:
    """The command line that runs a study of the tiny world."""
    return [
        *(sys.executable, "-m", "tuner", "search", "--model", str(world / "model")),
        *("--task", str(world / "task"), "--space", str(world / "space.yaml")),
        *("--general", str(world / "general.txt"), "--device", "cpu", "--workers", "1"),
        *("--trials", str(trials), "--budget", "1e-2", "--test-seeds", "0", "--name", "tiny"),
        *("--folder", str(studies), *options),
    ]


def environment(**changes: str) -> dict[str, str]:
    """Our environment, with which any folder can be the working directory."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changes}


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for something while a process runs."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, f"ended early, with code {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ended_trials(studies: Path) -> int:
    """How many trials of the tiny study have left their record."""
    return len(list((studies / "tiny" / "trials").glob("[0-9]*/record.json")))


# Ray's processes


def ray_process(driver: int, name: str) -> psutil.Process:
    """Ray's process of a name, such as raylet or gcs_server, below the driver."""
    below = psutil.Process(driver).children(recursive=True)
    return next(one for one in below if one.name() == name)


def lose(driver: int, name: str) -> None:
    """Kill one of Ray's own processes, as the system does when memory runs out."""
    ray_process(driver, name).kill()


def listeners(driver: int) -> list[tuple[str, str, int]]:
    """Who of the driver and the processes below listens: process, address and port."""
    found = []
    for process in (psutil.Process(driver), *psutil.Process(driver).children(recursive=True)):
        try:
            sockets = process.net_connections(kind="inet")
            title = " ".join(process.cmdline()[:3])
        except psutil.Error:
            continue  # it has just ended
        found += [
            (title, one.laddr.ip, one.laddr.port)
            for one in sockets
            if one.status == psutil.CONN_LISTEN
        ]
    return found


def outer_address() -> str | None:
    """An address of this machine that is not loopback, if it has one."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family is socket.AF_INET and not one.address.startswith("127."):
                return one.address
    return None


# The driver


def terminate(driver: int) -> None:
    """Ask the driver to end, as service managers and batch systems do."""
    os.kill(driver, signal.SIGTERM)


class Terminal:
    """A command on a terminal of its own, which can be closed."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start it as the terminal's own process, which the system tells of the end of it."""
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=theirs, stdout=theirs, stderr=theirs, env=dict(variables),
            preexec_fn=_heed_hangup,
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(self._ours, False)

    def read(self) -> str:
        """What was shown since the last call."""
        shown = b""
        try:
            while piece := os.read(self._ours, 65536):
                shown += piece
        except OSError:
            pass  # nothing more, for now or for good
        return shown.decode(errors="replace")

    def close(self) -> None:
        """Close the terminal: all that runs on it is sent SIGHUP, and can write no more."""
        os.close(self._ours)


def _heed_hangup() -> None:
    """Undo what nohup asked for, should the tests themselves run under it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# The machine


def with_small_shared_memory(command: Sequence[str], size: str = "16m") -> list[str]:
    """The command in a mount namespace whose /dev/shm is this small. Root only."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


def can_unshare() -> bool:
    """Whether this user may have a mount namespace."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def memory_limit(bytes: int) -> Iterator[Path]:
    """A control group whose processes may use so much memory; root only, version 1.

    What exceeds it is killed, as in a container.
    """
    group = _CGROUPS / f"tuner-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(bytes))
        yield group
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            os.kill(int(process), signal.SIGKILL)
        while (group / "cgroup.procs").read_text():
            time.sleep(0.1)
        group.rmdir()


def can_limit_memory() -> bool:
    """Whether this user may make such a group."""
    return (_CGROUPS / "memory.limit_in_bytes").is_file() and os.access(_CGROUPS, os.W_OK)


def within(group: Path, command: Sequence[str]) -> list[str]:
    """The command as a process of a control group."""
    return ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh", *command]


class JumpingClock:
    """A wall clock, for Python's processes of an environment, that can be put forward or back."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Put the clock so far from the true time."""
        self._file.write_text(f"{seconds:+d}\n")

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs to live by this clock. Monotonic time goes on as it does."""
        return {
            "PYTHONPATH": os.pathsep.join([str(_CLOCK), environment()["PYTHONPATH"]]),
            "TUNER_TEST_CLOCK": str(self._file),
        }
