"""A file that grows by a line of JSON at a time, so that long work goes on where it was stopped."""

import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from tuner.errors import ConfigError
from tuner.files.atomic_file import append_text, cannot_write
from tuner.files.json_file import validate_json
from tuner.files.text_file import read_bytes
from tuner.validation import show_path

M = TypeVar("M", bound=BaseModel)


def whole_lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a file, none where there is none.

    What follows the last line feed was cut short by a kill or a full disk and is left out.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    if not os.path.lexists(path):
        return ()
    content = read_bytes(path)
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    return tuple(_decoded(path, number, line) for number, line in enumerate(lines, start=1))


def read_line(path: Path, number: int, line: str, into: type[M], advice: str) -> M:
    """Return what a line holds, as an `into`; a complaint ends with the advice.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        return validate_json(line, into, f"{show_path(path)}:{number}")
    except ConfigError as error:
        raise ConfigError(f"{error} {advice}") from None


def cut_half_line(path: Path) -> None:
    """Remove what follows the last line feed; it would spoil the next line.

    Raises:
        ConfigError: it is not the beginning of a record, and may be somebody's text.
        DiskError: the file cannot be written.
    """
    content = read_bytes(path)
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        if not content[whole:].startswith(b'{"'[: len(content) - whole]):
            raise ConfigError(
                f"{show_path(path)}: what follows the last line is not the beginning of a "
                "record. Take it away, or choose another place."
            )
        try:
            os.truncate(path, whole)
        except OSError as error:
            raise cannot_write(path, error) from None


def append_line(path: Path, record: BaseModel) -> None:
    """Add a record as a line; a kill may leave a part of it, a full disk leaves none.

    Raises:
        DiskError: the file cannot be written, and is as it was.
    """
    append_text(path, f"{record.model_dump_json()}\n")


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{show_path(path)}:{number}: is not UTF-8.") from None
