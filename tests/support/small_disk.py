"""A small disk for one process: a file system in memory that nobody else sees, gone at its end."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.clone import ROOT

_UNSHARE = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-rm")
_MOUNT = 'mount -t tmpfs -o "size=$0" none "$1" && shift && exec "$@"'


def python_on_small_disk(
    place: Path, size: str, arguments: Sequence[str], timeout_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run Python with a disk of `size`, as `64k`, at `place`; skip where no disk can be mounted."""
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    place.mkdir(parents=True, exist_ok=True)
    command = [*_UNSHARE, "sh", "-c", _MOUNT, size, str(place), sys.executable, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@functools.cache
def can_mount() -> bool:
    """Return whether this user may mount a file system in memory."""
    if shutil.which("unshare") is None or not Path("/tmp").is_dir():
        return False
    trial = [*_UNSHARE, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/tmp"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0
