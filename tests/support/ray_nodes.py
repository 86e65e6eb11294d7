"""A Ray cluster of several nodes on loopback, whose nodes a test may kill and add."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.ray_head import ROOT, end_with_all_below, free_port

_UP = "Ray runtime started"
_UP_WITHIN_S = 90.0
_STARTS = 3


class RayNodes:
    """`ray start --block` once per node, each with a raylet and workers of its own.

    The head runs no trials. Never `ray stop`, which ends every Ray on the machine.
    """

    def __init__(self) -> None:
        self._token = secrets.token_hex(32)
        # Ray's sockets lie in it, and a socket's path must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._started = 0
        self.address = f"127.0.0.1:{free_port()}"
        self._head = self._start(
            *("--head", "--num-cpus=0", f"--port={self.address.rpartition(':')[2]}"),
            *("--include-dashboard=false", f"--temp-dir={self._folder}"),
            f"--ray-client-server-port={free_port()}",
        )
        self.workers: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be let in."""
        beside = Path(sys.executable).parent
        inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        return inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
            "OMP_NUM_THREADS": "1",
        }

    def add_worker(self) -> None:
        """Let a node with room for one trial join, and wait until it has."""
        self.workers.append(self._start(f"--address={self.address}", "--num-cpus=1"))

    def kill_worker(self) -> None:
        """Take the oldest of these nodes away with all that runs on it."""
        end_with_all_below(self.workers.pop(0))

    def end(self) -> None:
        """End all nodes."""
        for node in (*self.workers, self._head):
            end_with_all_below(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *arguments]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        command += ["--disable-usage-stats"]
        said = ""
        # On a busy machine Ray's processes may miss the time that it gives them to start.
        for _ in range(_STARTS):
            self._started += 1
            path = self._folder / f"node-{self._started}.log"
            with path.open("wb") as log:
                node = subprocess.Popen(
                    command, env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            deadline = time.monotonic() + _UP_WITHIN_S
            while node.poll() is None and time.monotonic() < deadline:
                said = path.read_text(errors="replace")
                if _UP in said:
                    return node
                time.sleep(0.1)
            end_with_all_below(node)
        raise TimeoutError(said[-2000:])
