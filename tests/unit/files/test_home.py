"""Where things are kept by a user without a home, whom the system does not know."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner.files.cache import cache_folder
from tuner.files.home import ensure_home, temporary_home

UNKNOWN = 12345
# As root the process becomes such a user; others meet the same answers of the system.
BECOME = f"""\
import os, sys
from tuner.files.home import ensure_home
from tuner.cli import main
import tuner.cli.inspection, torch
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {{uid}}")
pwd.getpwuid = unknown
if os.getuid() == 0:
    os.setuid({UNKNOWN})
sys.argv = ["tuner", "doctor", "--json"]
main()
"""


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for temporary files, and neither a home nor a user's name."""
    for name in ("HOME", "XDG_CACHE_HOME", "TUNER_CACHE", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tuner.files.home.temporary_home", temporary_home.__wrapped__)
    monkeypatch.setattr("tuner.files.cache.temporary_home", temporary_home.__wrapped__)
    return tmp_path


def test_a_process_without_a_home_gets_one_that_is_its_own(homeless: Path) -> None:
    home = ensure_home()
    assert home == homeless / f"tuner-home-{os.getuid()}"
    assert os.environ["HOME"] == str(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert os.environ.pop("USER") == f"user-{os.getuid()}"
    assert cache_folder() == home / ".cache" / "tuner"
    assert ensure_home() is None


def test_the_cache_of_a_library_s_user_needs_no_home(homeless: Path) -> None:
    assert cache_folder() == homeless / f"tuner-home-{os.getuid()}" / ".cache" / "tuner"


def test_a_home_that_others_can_read_or_lead_elsewhere_is_not_used(homeless: Path) -> None:
    place = homeless / f"tuner-home-{os.getuid()}"
    place.symlink_to(homeless / "elsewhere")
    (homeless / "elsewhere").mkdir(mode=0o700)
    home = ensure_home()
    assert home is not None
    assert home != place
    assert home.parent == homeless


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_doctor_works_for_a_user_whom_the_system_does_not_know(open_folder: Path) -> None:
    keep = {key: value for key, value in os.environ.items() if key.startswith(("PATH", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", BECOME],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=open_folder,
        env=keep | {"TMPDIR": str(open_folder)},
    )
    assert done.returncode == 0, done.stderr
    assert "there is no home folder, so caches lie in" in done.stderr
    assert done.stderr.count("tuner:") == 1
    assert "tuner-home-" in done.stdout
