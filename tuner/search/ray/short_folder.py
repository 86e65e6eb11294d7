"""A private folder for the life of a process, whose path is short enough for sockets in it."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tuner.errors import ConfigError

_PREFIX = "tuner-ray-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
_ADDED = 1 + len(_PREFIX) + 8
"""How many bytes the folder's own name adds to the path of the one that holds it."""


@contextmanager
def short_folder(longest: int) -> Iterator[Path]:
    """Make a folder that only this user can enter, with a path of `longest` bytes at most.

    It lies where temporary files lie, or, where that path is too long, in the first of a few
    common places that can be written to. Those of processes that were killed are removed.

    Raises:
        ConfigError: there is no such place.
    """
    places = [place for place in _places() if len(os.fsencode(place)) + _ADDED <= longest]
    for place in places:
        _remove_leftovers(place)
    folder, lock = _make(places, longest - _ADDED)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _places() -> list[Path]:
    """Return where a temporary folder may be, the user's own choice first."""
    known = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"]
    return list(dict.fromkeys(Path(place).absolute() for place in known if place))


def _make(places: Sequence[Path], room: int) -> tuple[Path, int]:
    """Return a new folder, with the lock that says that its process lives."""
    for place in places:
        try:
            while True:
                # Its name is drawn, and it is made with mode 0700 or not at all: what a stranger
                # has put in its place is never taken for it.
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
                lock = _locked_here(folder)
                if lock is not None:
                    return folder, lock
        except OSError:
            continue  # nothing can be written, or locked, there
    raise ConfigError(
        "Ray's sockets need a folder whose path is short, and there is none that can be written "
        f"to. Let TMPDIR name a folder whose path has {room} bytes at most; it names "
        f"{tempfile.gettempdir()!r}."
    )


def _locked_here(folder: Path) -> int | None:
    """Lock a folder that we have just made; None if somebody who cleared up was quicker."""
    try:
        return _locked(folder, wait=True)
    except OSError:
        folder.rmdir()
        raise


def _locked(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder and return the lock, which the system drops with the process.

    None where another process holds it, or the folder is gone.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with ExitStack() as undo:
        undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not os.path.samestat(os.fstat(lock), folder.lstat()):
                return None
        except (BlockingIOError, FileNotFoundError):
            return None
        undo.pop_all()
    return lock


def _remove_leftovers(place: Path) -> None:
    """Remove the folders of this user's processes that were killed."""
    for folder in place.glob(f"{_PREFIX}*"):
        try:
            if not _NAME.fullmatch(folder.name) or folder.lstat().st_uid != os.getuid():
                continue
            lock = _locked(folder, wait=False)
        except OSError:
            continue  # not ours to look at, or no folder
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
