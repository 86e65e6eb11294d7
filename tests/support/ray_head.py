"""A real Ray head with a job server and a token, on loopback, started and ended by us alone."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx2

from tests.support.clone import ROOT

_UP_WITHIN_S = 300.0


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RayHead:
    """`ray start --head --block` as one process group; never `ray stop`, which ends every Ray."""

    def __init__(self, studies: Path) -> None:
        self.studies = studies
        self.token = secrets.token_hex(32)
        # Ray's sockets lie in it, and a socket's path must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        beside = Path(sys.executable).parent
        command = [str(beside / "ray"), "start", "--head", "--block", "--num-cpus=1"]
        command += ["--node-ip-address=127.0.0.1", f"--port={free_port()}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self._port}"]
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self._folder}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        # Its port is 10001 unless told, and a second head on this machine ends for want of it.
        command += [f"--ray-client-server-port={free_port()}"]
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
                ":"
            ),
            "TUNER_STUDIES": str(self.studies),
            "OMP_NUM_THREADS": "1",
        }
        absent = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "TUNER_STORAGE")
        inherited = {key: value for key, value in os.environ.items() if key not in absent}
        with (self._folder / "head.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=inherited | settings, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _UP_WITHIN_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx2.RequestError):
                headers = {"Authorization": f"Bearer {self.token}"}
                # The server answers a moment before the node has joined.
                if '"ALIVE"' in httpx2.get(f"{self.address}/api/v0/nodes", headers=headers).text:
                    return
            time.sleep(0.3)
        said = (self._folder / "head.log").read_text()
        self.kill()
        raise TimeoutError(said[-2000:])

    def kill(self) -> None:
        """End the head and all that it has started."""
        if self._process is None:
            return
        end_with_all_below(self._process)
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


def end_with_all_below(process: subprocess.Popen[bytes]) -> None:
    """End a process, and all that it has started, as a power cut would."""
    for pid in (process.pid, *_descendants(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def _descendants(pid: int) -> list[int]:
    """The processes below one, of which some lead groups of their own."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
