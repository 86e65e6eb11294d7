"""A Ray of this machine for several studies, in a process of its own until that is told to end."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.authentication_test_utils import (
    authentication_env_guard,
    reset_auth_token_state,
    set_auth_mode,
    set_env_auth_token,
)

from tests.support.clone import ROOT
from tuner.search.ray.local_ray import start_local_ray
from tuner.search.ray.private_api import on_loopback

_CPUS = 2


class SharedRay:
    """Ray as a search on this machine starts it, to which several searches connect in turn."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(32)
        # Ray's sockets lie in it, and a socket's path must be short.
        self._folder = tempfile.TemporaryDirectory(
            prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
        )
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
        }
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, self._folder.name],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        self.address = self._keeper.stdout.readline().strip()
        assert self.address, "Ray did not start"

    @contextmanager
    def known(self) -> Iterator[None]:
        """Let this process know the token, and that Ray is on loopback; then forget it again."""
        with authentication_env_guard(), on_loopback():
            set_auth_mode("token")
            set_env_auth_token(self._token)
            reset_auth_token_state()
            yield
        reset_auth_token_state()

    def end(self) -> None:
        """End Ray and all that runs on it."""
        self._keeper.communicate("", timeout=120)
        self._folder.cleanup()


if __name__ == "__main__":
    start_local_ray(_CPUS, Path(sys.argv[1]))
    sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()
