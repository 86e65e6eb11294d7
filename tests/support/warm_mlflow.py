"""An MLflow server that is back within a moment, so that it can be killed many times.

Run as a program it imports the server once, and forks for each line that it reads: the address of
a database, a folder for artifacts and a port. It answers with the process that serves them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil


class WarmMlflow:
    """The program that has imported the server; ends all that it started when it is closed."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as messages:
            self._program = subprocess.Popen(
                [sys.executable, __file__],
                env=os.environ
                | {
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )

    def fork(self, database: str, artifacts: Path, port: int) -> int:
        """Return the process of a new server, which leads a group of its own."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        print(json.dumps([database, str(artifacts), port]), file=self._program.stdin, flush=True)
        return int(self._program.stdout.readline())

    def close(self) -> None:
        """End the program; servers that still run are ended by `WarmServer.kill`."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(30)


class WarmServer:
    """One MLflow server, killed and started as often as one likes."""

    def __init__(self, warm: WarmMlflow, database: str, artifacts: Path) -> None:
        self._warm = warm
        self._database, self._artifacts = database, artifacts
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: int | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = self._warm.fork(self._database, self._artifacts, self.port)
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=10):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            os.killpg(self._process, signal.SIGKILL)
            # Its port is free once it has gone.
            while psutil.pid_exists(self._process):
                time.sleep(0.01)
            self._process = None


def _serve_whoever_asks() -> None:
    import uvicorn
    from mlflow.server import (
        ARTIFACT_ROOT_ENV_VAR,
        ARTIFACTS_DESTINATION_ENV_VAR,
        BACKEND_STORE_URI_ENV_VAR,
        SERVE_ARTIFACTS_ENV_VAR,
    )
    from mlflow.server.fastapi_app import app

    # The system takes ended servers away by itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        database, artifacts, port = json.loads(line)
        process = os.fork()
        if process:
            print(process, file=answers, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ |= {
            BACKEND_STORE_URI_ENV_VAR: database,
            ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
            ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            SERVE_ARTIFACTS_ENV_VAR: "true",
        }
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
        os._exit(0)


if __name__ == "__main__":
    _serve_whoever_asks()
