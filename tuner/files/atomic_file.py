"""Files and folders that are written whole or not at all, also through a kill or a full disk.

What is written is gathered in a draft folder beside its place and moved there at the end. A draft
bears the process that makes it in its name, so that those of killed processes can be removed.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from tuner.errors import DiskError

if TYPE_CHECKING:
    from torch import Tensor

_DRAFT: Final = re.compile(r"\.tuner-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{12}\.draft")
# A draft of another machine, whose processes cannot be asked, was left when it is so old. Drafts
# are made when everything is at hand, and are there for seconds.
_ABANDONED_AFTER_S = 3600.0

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What the system answers where a disk is full, or a user's share of it."""
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text; the folders above it are made.

    Raises:
        DiskError: it cannot be written; a file that was there before is as it was.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; the folders above it are made.

    Raises:
        DiskError: it cannot be written; a file that was there before is as it was.
    """
    with whole_file(path) as draft, draft.open("xb") as file:
        file.write(content)


def write_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name as a safetensors file; the folders above it are made.

    Raises:
        DiskError: it cannot be written; a file that was there before is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    remove_abandoned_drafts(path.parent)
    with whole_file(path) as draft:
        # The library makes its files readable by their owner alone; ours all follow the umask.
        draft.touch()
        mode = draft.stat().st_mode & 0o777
        try:
            save_file(dict(tensors), draft, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise as_os_error(error) from None
        draft.chmod(mode)


def append_text(path: Path, text: str) -> None:
    """Add text at the end of a file, made with the folders above it if need be.

    A kill may leave a part of the text; a full disk leaves none of it.

    Raises:
        DiskError: it cannot be written, or is not a regular file; the file is as it was.
    """
    _refuse_special(path, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                rest = memoryview(text.encode("utf-8"))
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the place of a new file to write; it stands at `path` once the block has ended well.

    Raises:
        DiskError: it cannot be written, or something other than a regular file is there; what was
            there before is as it was.
    """
    # What a link points to is replaced, not the link.
    target = Path(os.path.realpath(path))
    _refuse_special(target, told=path)
    with _moved_to(target, told=path) as draft:
        yield draft
        _flush(draft)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a new folder to fill; it stands at `target` once the block has ended well.

    Raises:
        DiskError: it cannot be written, or something other than an empty folder is at `target`.
    """
    remove_abandoned_drafts(target.parent)
    with _moved_to(target) as draft:
        draft.mkdir()
        yield draft
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                _flush(path)


def remove_abandoned_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes have left directly in a folder."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if is_abandoned_draft(path):
                shutil.rmtree(path, ignore_errors=True)


def is_abandoned_draft(path: Path) -> bool:
    """Return whether this is a draft and the process that made it has ended."""
    name = _DRAFT.fullmatch(path.name)
    if name is None:
        return False
    if name["machine"] == _machine():
        return not _lives(int(name["pid"]))
    return is_untouched(path)


def is_untouched(path: Path) -> bool:
    """Return whether nobody has written to a draft for so long that its process must have ended."""
    try:
        return time.time() - path.lstat().st_mtime > _ABANDONED_AFTER_S
    except OSError:
        return False


@contextmanager
def disk_trouble_in_words() -> Iterator[None]:
    """Let a full, broken or forbidden disk be a `DiskError`, wherever in the block it is met.

    Raises:
        DiskError: a file cannot be written or read for such a reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *_FORBIDDEN, errno.EIO):
            raise
        raise cannot_write(Path(str(error.filename or "A file")), error) from error


def cannot_write(path: Path, error: OSError) -> DiskError:
    """Return in words why something cannot be written, and what to do about it."""
    if error.errno in FULL:
        return DiskError(
            f"{path} cannot be written: the disk is full, or your share of it is used up. "
            "Make room and run the same command again."
        )
    why = error.strerror or str(error) or type(error).__name__
    if error.errno in _FORBIDDEN:
        return DiskError(
            f"{path} cannot be written: {why}. Choose another place, or change who may write there."
        )
    return DiskError(f"{path} cannot be written: {why}.")


def _refuse_special(path: Path, told: Path) -> None:
    """Refuse what is not a regular file: root may replace even the system's devices."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # absent, or writing it says why not
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device, pipe or socket"
        raise DiskError(
            f"{told} cannot be written: it is a {kind}, not a file. Choose another place."
        )


@contextmanager
def _moved_to(target: Path, told: Path | None = None) -> Iterator[Path]:
    name = f".tuner-{_machine()}-{os.getpid()}-{uuid4().hex[:12]}.draft"
    around = target.absolute().parent / name
    try:
        around.parent.mkdir(parents=True, exist_ok=True)
        around.mkdir()
        draft = around / target.name
        yield draft
        draft.replace(target)
        _flush(around.parent)
    except OSError as error:
        raise cannot_write(told or target, error) from None
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the operating system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def as_os_error(error: Exception) -> OSError:
    """Return the error of the operating system that safetensors puts into a text."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


@cache
def _machine() -> str:
    """Return a mark of all whose processes we can see: this machine since it started."""
    marks = [socket.gethostname()]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))  # a container's processes are its own
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:8]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
