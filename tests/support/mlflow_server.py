"""A real MLflow server on loopback that a test may kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.support.s3_server import S3Server


class MlflowServer:
    """`mlflow server` as one small process group, started, killed and ended by us alone.

    With databases it keeps its runs in the first and its users in the second, and wants a login.
    With a store it keeps artifacts in its bucket; they go through the server either way.
    """

    user = "admin"
    password = "drawn-for-this-test"

    def __init__(
        self,
        folder: Path,
        databases: tuple[str, str] | None = None,
        store: S3Server | None = None,
    ) -> None:
        self._folder = folder
        self._store = store
        self._databases = databases
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database = f"sqlite:///{self._folder / 'server.db'}"
        if self._databases is not None:
            database = self._databases[0]
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
        artifacts = f"s3://{self._store.bucket}" if self._store else str(self._folder / "artifacts")
        command += ["--artifacts-destination", artifacts, "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        settings = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if self._store is not None:
            settings |= self._store.environment
        if self._databases is not None:
            command += ["--app-name", "basic-auth"]
            settings |= self._users(self._databases[1])
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | settings,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError((self._folder / "server.log").read_text()[-2000:])

    def _users(self, database: str) -> dict[str, str]:
        config = self._folder / "auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = {database}\nadmin_username = {self.user}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "drawn-for-this-test-too",
        }

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            # The process leads a group of its own, so its worker goes with it and nothing else.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None
