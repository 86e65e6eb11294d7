"""MLflow's database as a file: made whole or not at all, and made anew where it was left half made.

MLflow builds its tables one by one in the file itself. Stopped in between, it can neither go on nor
begin anew, and says that a table exists already.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from tuner.errors import ConfigError
from tuner.files.atomic_file import remove_abandoned_drafts, whole_file
from tuner.files.file_lock import file_lock_if_any
from tuner.tracking.location import sqlite_file

# What the building of the tables itself writes.
_BOOKKEEPING = ("alembic_version", "workspaces")


def make_database_file(uri: str) -> None:
    """Make the file behind a SQLite URI, where there is none or nothing has come into it yet.

    Raises:
        DiskError: it cannot be written.
        ConfigError: it is there and is damaged.
    """
    file = sqlite_file(uri)
    if file is None or _holds_something(file):
        return
    with file_lock_if_any(Path(f"{file}.lock")):
        if _holds_something(file):
            return  # another process was first
        remove_abandoned_drafts(file.parent)
        with whole_file(file) as draft:
            _build(_beside(uri, draft))
            # They belong to the half-made file; SQLite would take them for the new one's.
            for ending in ("-journal", "-wal", "-shm"):
                Path(f"{file}{ending}").unlink(missing_ok=True)


def _build(uri: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # As the client makes it, but ours to close: the file is about to move.
    store = SqlAlchemyStore(uri, "./mlruns")
    store.engine.dispose()


def _beside(uri: str, draft: Path) -> str:
    """Return the URI of a draft in a folder beside the file of `uri`."""
    path, mark, rest = uri.partition("?")
    folder, _, name = path.rpartition("/")
    return f"{folder}/{draft.parent.name}/{name}{mark}{rest}"


def _holds_something(file: Path) -> bool:
    """Return whether there is a database with a row of anything but bookkeeping.

    A whole one has at least the default experiment, which MLflow adds last.

    Raises:
        ConfigError: the file is not a database, or is damaged.
    """
    if not file.exists():
        return False
    try:
        # Written to, so that what a killed process had begun is undone first.
        with closing(sqlite3.connect(file, timeout=30)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = [name for (name,) in names if not name.startswith("sqlite_")]
            return any(
                database.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone()
                for table in tables
                if table not in _BOOKKEEPING
            )
    except sqlite3.OperationalError:
        return True  # locked or not ours to write: MLflow has the words
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{file}: is not MLflow's database, or is damaged: {error}. Move it away and run "
            "`tuner status STUDY --sync` for each study, which sends all of it again from the "
            "study's records."
        ) from None
