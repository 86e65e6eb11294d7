"""JSON becomes types here; what would break a later reader is refused before anything walks it."""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from tuner.errors import ConfigError, TunerError
from tuner.files.text_file import read_text, read_text_if_any
from tuner.validation import describe_problems, show_path, show_value

M = TypeVar("M", bound=BaseModel)

DEEPEST = 100
"""Lists and objects within one another; Python's own reader gives up at about a thousand."""
_DIGITS = 300
"""Digits of a whole number; more than these do not even fit a float."""

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A text is not JSON that is taken here; the message says why, in words."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def read_json(path: Path, into: type[M], error: type[TunerError] = ConfigError) -> M:
    """Return what a file holds, as an `into`.

    Raises:
        TunerError: an `error`: the file is absent, unreadable, not JSON or breaks a rule of `into`.
    """
    return validate_json(read_text(path, error), into, show_path(path), error)


def read_json_if_any(path: Path, into: type[M], error: type[TunerError] = ConfigError) -> M | None:
    """Return what a file holds, as an `into`, or None where there is no file.

    Raises:
        TunerError: an `error`: the file is unreadable, not JSON or breaks a rule of `into`.
    """
    text = read_text_if_any(path, error)
    return None if text is None else validate_json(text, into, show_path(path), error)


def validate_json(text: str, into: type[M], where: str, error: type[TunerError] = ConfigError) -> M:
    """Return what a text holds, as an `into`; `where` begins each complaint.

    Raises:
        TunerError: an `error`: the text is not JSON or breaks a rule of `into`.
    """
    try:
        parse_json(text)
    except JsonError as problem:
        known = problem.line is not None and "\n" in text.strip()
        place = f"{where}:{problem.line}" if known else where
        raise error(f"{place}: not valid JSON: {problem}.") from None
    try:
        # Not the value above: pydantic takes less from JSON's types than from Python's.
        return into.model_validate_json(text)
    except ValidationError as problem:
        raise error(f"{where}: {describe_problems(problem)}") from None


def parse_json(text: str) -> Any:
    """Return the value that a text holds.

    Raises:
        JsonError: it is not JSON; is nested too deeply; repeats a key; holds NaN, infinity, a
            number beyond floats or half of a surrogate pair.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as problem:
        raise JsonError(_lower(problem.msg), problem.lineno) from None
    except RecursionError:
        raise JsonError(f"more than {DEEPEST} lists and objects within one another") from None
    check_tame(value, text)
    return value


def check_tame(value: object, text: str) -> None:
    """Verify that a value from the JSON `text` is not nested too deeply and can be written.

    Raises:
        JsonError: it is, or holds half of a surrogate pair.
    """
    # The text says at once that most values need no walk.
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    if _HALF_PAIR.search(text):
        _check_unicode(value)


def new_decoder(*, unique_keys: bool = True) -> json.JSONDecoder:
    """Return a decoder whose `raw_decode` refuses numbers that Python or pydantic stumble over."""
    return json.JSONDecoder(
        parse_int=_parse_int,
        parse_float=_parse_float,
        parse_constant=_refuse_constant,
        object_pairs_hook=_object if unique_keys else None,
    )


def _parse_int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise JsonError(f"a number of {len(digits):,} digits")
    return int(digits)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"the number {show_value(text)} is beyond what floats hold")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"the key {show_value(key)} stands twice in an object")
            seen.add(key)
    return members


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_depth(value: object) -> None:
    level, depth = _children(value), 1
    while level:
        depth += 1
        level = [child for item in level for child in _children(item)]
        if level and depth > DEEPEST:
            raise JsonError(f"more than {DEEPEST} lists and objects within one another")


def _check_unicode(value: object) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        strings = item.keys() if isinstance(item, dict) else (item,)
        for text in strings:
            if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
                raise JsonError(f"half of a surrogate pair, in {show_value(text)}")
        todo += _children(item)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


_DECODER = new_decoder()
