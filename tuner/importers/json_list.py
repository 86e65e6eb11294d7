"""Reads long JSON lists record by record, with the number of the record in every complaint."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from tuner.errors import TaskError
from tuner.files.json_file import JsonError, check_tame, new_decoder
from tuner.files.text_file import open_file, reason
from tuner.validation import describe_problems, show_path

_CHUNK = 1 << 16
_Record = TypeVar("_Record", bound=BaseModel)


def read_records(path: Path, into: type[_Record]) -> Iterator[tuple[int, _Record]]:
    """Yield number, from 1, and record of a file that holds one JSON list of objects.

    Only one record is held at a time: the published files reach hundreds of megabytes. A bar on a
    terminal shows how far the reading is.

    Raises:
        TaskError: the file cannot be read, is not a JSON list, or a record is malformed.
    """
    try:
        with (
            open_file(path, TaskError) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig") as file,
            tqdm(
                total=os.fstat(raw.fileno()).st_size,
                desc=path.name,
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar,
        ):
            for number, value in _elements(path, file, bar.update):
                yield number, _validated(path, number, value, into)
    except UnicodeDecodeError:
        raise TaskError(f"{show_path(path)}: cannot be read: it is not UTF-8.") from None
    except OSError as error:
        raise TaskError(f"{show_path(path)}: cannot be read: {reason(error)}.") from None


def _validated(path: Path, number: int, value: object, into: type[_Record]) -> _Record:
    try:
        return into.model_validate(value)
    except ValidationError as error:
        problems = describe_problems(error)
        raise TaskError(f"{show_path(path)}: record {number}: {problems}") from None


def _elements(
    path: Path, file: TextIO, note: Callable[[int], object]
) -> Iterator[tuple[int, object]]:
    decoder = new_decoder(unique_keys=False)
    buffer, size, number = "", _CHUNK, 0

    def more() -> bool:
        nonlocal buffer
        chunk = file.read(size)
        note(len(chunk))
        buffer += chunk
        return bool(chunk)

    def next_mark() -> str:
        """Return the next character that is not a space, without taking it; "" at the end."""
        nonlocal buffer
        buffer = buffer.lstrip()
        while not buffer and more():
            buffer = buffer.lstrip()
        return buffer[:1]

    if next_mark() != "[":
        raise TaskError(f"{path}: must hold one JSON list of records, but begins {buffer[:20]!r}.")
    buffer = buffer[1:]
    if next_mark() == "]":
        return
    while True:
        number += 1
        if next_mark() != "{":
            raise TaskError(
                f"{path}: record {number}: an object must stand here, but it begins "
                f"{buffer[:20]!r}."
            )
        while True:
            try:
                value, end = decoder.raw_decode(buffer)
                check_tame(value, buffer[:end])
                break
            except json.JSONDecodeError as error:
                # Perhaps only the rest of the record is not read yet. A record that is broken
                # takes the whole rest of the file; doubling keeps that from being slow.
                size *= 2
                if not more():
                    raise TaskError(
                        f"{path}: record {number}: not valid JSON: {error.msg}. If the file was "
                        "cut off, download it again."
                    ) from None
            except RecursionError:
                raise TaskError(
                    f"{path}: record {number}: cannot be read: nested too deeply."
                ) from None
            except JsonError as error:
                raise TaskError(f"{path}: record {number}: cannot be read: {error}.") from None
        size = _CHUNK
        buffer = buffer[end:]
        yield number, value
        mark = next_mark()
        buffer = buffer[1:]
        if mark == "]":
            return
        if mark != ",":
            raise TaskError(
                f"{path}: after record {number} a comma or the end of the list must stand, but "
                + (f"there is {mark!r}." if mark else "the file ends; download it again.")
            )
