"""Locks on files, which the operating system drops with the process, however that ends."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from tuner.errors import DiskError
from tuner.files.atomic_file import cannot_write

_FOREVER: Final = -1.0
# What a file system without locks answers: Lustre, some FUSE and NFS mounts.
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LockHeld(Exception):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, timeout_s: float = _FOREVER) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be, together with its folder.

    Raises:
        LockHeld: another process holds it, and goes on for `timeout_s`.
        DiskError: the file cannot be written, or its file system lends no locks.
    """
    # An existing file for a lock would survive a killed process.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise LockHeld from None
    except (OSError, NotImplementedError) as error:
        raise _cannot_lock(path, error) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def file_lock_if_any(path: Path, timeout_s: float = _FOREVER) -> Iterator[None]:
    """Hold the lock of a file where its disk lends one to us; go on without it elsewhere.

    Raises:
        LockHeld: another process holds it, and goes on for `timeout_s`.
    """
    with ExitStack() as held:
        with suppress(DiskError):
            held.enter_context(file_lock(path, timeout_s))
        yield


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock of a file; no where we may not look."""
    if not path.exists():
        return False
    try:
        with file_lock_if_any(path, timeout_s=0):
            return False
    except LockHeld:
        return True


def _cannot_lock(path: Path, error: Exception) -> DiskError:
    if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
        return cannot_write(path, error)
    why = getattr(error, "strerror", None) or str(error)
    return DiskError(
        f"{path} cannot be locked: its disk lends no locks ({why}). "
        "Choose a folder on another disk."
    )
