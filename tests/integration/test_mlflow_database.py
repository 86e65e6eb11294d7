"""MLflow's database as a file is made whole, whatever kills its maker, and mended if it is not."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.small_disk import python_on_small_disk
from tuner.errors import ConfigError
from tuner.tracking.location import default_uri
from tuner.tracking.runs import open_client

mlflow = pytest.importorskip("mlflow")

IN_PLACE = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments(max_results=1)"
OURS = "import sys; from tuner.tracking.runs import open_client; open_client(sys.argv[1])"


def killed_at(script: str, folder: Path, tables: int) -> None:
    """Let a process make the database, and kill it once so many tables are there."""
    maker = subprocess.Popen(
        [sys.executable, "-c", script, default_uri(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while maker.poll() is None and time.monotonic() < deadline:
        if any(_tables(path) >= tables for path in folder.rglob("mlflow.db")):
            break
        time.sleep(0.005)
    assert maker.poll() is None, "the database was made before it could be killed"
    maker.kill()
    maker.wait()


def _tables(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0)) as database:
            return int(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.Error:
        return -1


def works(folder: Path) -> bool:
    client = open_client(default_uri(folder))
    name = f"experiment-{time.monotonic_ns()}"
    run = client.create_run(client.create_experiment(name, f"{folder}/artifacts"))
    return bool(client.get_run(run.info.run_id).info.status == "RUNNING")


@pytest.mark.parametrize("tables", [5, 25])
def test_a_database_that_mlflow_left_half_made_is_made_anew(tmp_path: Path, tables: int) -> None:
    killed_at(IN_PLACE, tmp_path, tables)
    assert works(tmp_path)


def test_a_kill_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    for tables in (0, 25):
        killed_at(OURS, tmp_path, tables)
        assert not (tmp_path / "mlflow.db").exists()
    assert works(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "artifacts")
    assert left == ["mlflow.db", "mlflow.db.lock"]
    assert works(tmp_path)  # it is not made again
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (2,)


def test_a_disk_that_is_full_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tuner.errors import TunerError
from tuner.tracking.location import default_uri
from tuner.tracking.runs import open_client, translated
place = Path(sys.argv[1])
filler = place / "filler"
filler.write_bytes(bytes(1_600_000))
try:
    with translated("sqlite"):
        open_client(default_uri(place))
except TunerError as error:
    print("full" in str(error))
print(sorted(os.listdir(place)))
filler.unlink()
open_client(default_uri(place))
print(sorted(os.listdir(place)))
"""
    disk = tmp_path / "disk"
    found = python_on_small_disk(disk, "2m", ["-c", script, str(disk)])
    assert found.stdout.splitlines() == [
        "True",
        "['filler', 'mlflow.db.lock']",
        "['mlflow.db', 'mlflow.db.lock']",
    ], found.stderr


def test_a_file_that_is_no_database_is_told_in_words_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("x" * 5000)
    with pytest.raises(ConfigError, match=r"mlflow\.db: is not MLflow's database.*--sync"):
        open_client(default_uri(tmp_path))
    assert os.path.getsize(tmp_path / "mlflow.db") == 5000
