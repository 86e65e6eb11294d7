"""Files of users, read as bytes or as text; whatever cannot be read is told in words.

Only regular files are opened: a FIFO, a socket or a device would keep the reader waiting, or never
end. Text is UTF-8; a byte-order mark at its beginning is dropped.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tuner.errors import ConfigError, TunerError
from tuner.validation import show_path

_MARK = "\ufeff"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")

_REASONS = {
    errno.ENOENT: "it does not exist",
    errno.ENOTDIR: "it does not exist: a part of the path is not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.EACCES: "you are not allowed to read it",
    errno.EPERM: "you are not allowed to read it",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its symbolic links lead in a circle",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_ABSENT = (FileNotFoundError, NotADirectoryError)


def read_text(
    path: Path, error: type[TunerError] = ConfigError, *, most_bytes: int | None = None
) -> str:
    """Return the text of a file, with one line feed between lines.

    Raises:
        TunerError: an `error`: the file is absent, unreadable, too large or not UTF-8.
    """
    return _decode(path, read_bytes(path, error, most_bytes=most_bytes), error)


def read_text_if_any(path: Path, error: type[TunerError] = ConfigError) -> str | None:
    """Return the text of a file, or None where there is no file.

    Raises:
        TunerError: an `error`: the file is there, but is unreadable or not UTF-8.
    """
    try:
        os.stat(path)
    except _ABSENT:
        return None
    except (OSError, ValueError):
        pass  # read_text says it in words
    return read_text(path, error)


def read_bytes(
    path: Path, error: type[TunerError] = ConfigError, *, most_bytes: int | None = None
) -> bytes:
    """Return the bytes of a file.

    Raises:
        TunerError: an `error`: the file is absent, unreadable or too large.
    """
    with open_file(path, error) as file:
        try:
            content = file.read() if most_bytes is None else file.read(most_bytes + 1)
        except OSError as problem:
            raise error(f"{show_path(path)}: cannot be read: {reason(problem)}.") from None
        except MemoryError:
            raise error(f"{show_path(path)}: cannot be read: larger than the memory.") from None
    if most_bytes is not None and len(content) > most_bytes:
        raise error(f"{show_path(path)}: at most {most_bytes:,} bytes are read, but it has more.")
    return content


def read_lines(path: Path, error: type[TunerError] = ConfigError) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line, without its end; only one line is held.

    Raises:
        TunerError: an `error`: the file is absent, unreadable or not UTF-8.
    """
    with open_file(path, error) as file:
        number = 0
        while True:
            try:
                # Not by Python's text lines: a text may hold a line separator of Unicode.
                raw = file.readline()
            except OSError as problem:
                raise error(f"{show_path(path)}: cannot be read: {reason(problem)}.") from None
            if not raw:
                return
            number += 1
            line = _decode(path, raw, error, before=number - 1)
            yield number, line.removesuffix("\n")


@contextmanager
def open_file(path: Path, error: type[TunerError] = ConfigError) -> Iterator[BinaryIO]:
    """Give a regular file, opened to read bytes.

    Raises:
        TunerError: an `error`: it is absent, not allowed to be read, or not a regular file.
    """
    try:
        _refuse_special(path, os.stat(path), error)
        # Another file may stand here by now: do not wait for it, and look again.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        file = os.fdopen(descriptor, "rb")
    except (OSError, ValueError) as problem:
        raise error(f"{show_path(path)}: cannot be read: {reason(problem)}.") from None
    with file:
        _refuse_special(path, os.fstat(descriptor), error)
        yield file


def is_file(path: Path | str) -> bool:
    """Whether there is a regular file; never an exception, whatever the path is."""
    return os.path.isfile(path)


def is_folder(path: Path | str) -> bool:
    """Whether there is a folder; never an exception, whatever the path is."""
    return os.path.isdir(path)


def exists(path: Path | str) -> bool:
    """Whether there is anything; never an exception, whatever the path is."""
    return os.path.exists(path)


def is_taken(path: Path | str) -> bool:
    """Whether something other than an empty folder is there, or may be for all we can see."""
    if not is_folder(path):
        return os.path.lexists(path)
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return True


def reason(problem: OSError | ValueError) -> str:
    """Return in words why a file could not be opened, read or written."""
    if not isinstance(problem, OSError):
        return "its name holds characters that no file's name has"
    if problem.errno in _REASONS:
        return _REASONS[problem.errno]
    return problem.strerror or type(problem).__name__


def _refuse_special(path: Path, status: os.stat_result, error: type[TunerError]) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
    raise error(f"{show_path(path)}: cannot be read: it is {kind}, not a file.")


def _decode(path: Path, content: bytes, error: type[TunerError], before: int = 0) -> str:
    """Return the text of a file, or of its line after `before` others."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = before + content.count(b"\n", 0, problem.start) + 1
        hint = " It looks like UTF-16." if before == 0 and content[:2] in _WIDE_MARKS else ""
        raise error(
            f"{show_path(path)}:{line}: cannot be read: the byte 0x{content[problem.start]:02x} is "
            f"not UTF-8.{hint} Save the file as UTF-8."
        ) from None
    if before == 0:
        text = text.removeprefix(_MARK)
    return text.replace("\r\n", "\n") if "\r" in text else text
