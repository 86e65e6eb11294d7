"""What does not hold, in words: complaints of pydantic, values and paths, cut short, no secrets."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

_TOLD = 20
"""Broken rules of a file that are told: one mistake may break thousands."""
_SHOWN = 100
"""Characters of a value that a message repeats: enough to recognise it."""

# What stands under these keys is never repeated.
_MAY_BE_SECRET = frozenset({"storage", "ledger", "username", "password", "token"})
# A path that is made of a URL has but one slash.
_LOGIN = re.compile(r"(\w:/{1,2})[^\s/'\"]*@")

_WORDS = {
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "string_unicode": "must be valid Unicode, without halves of surrogate pairs",
}
# A whole mapping explains nothing; an unknown key's value may be private, and of a key
# that is misspelt it may be a password.
_WITHOUT_VALUE = frozenset({"missing", "extra_forbidden", "string_unicode"})


def describe_problems(error: ValidationError) -> str:
    """Return pydantic's complaints on one line."""
    problems, rest = first_problems(error)
    return "; ".join([*map(describe_problem, problems), *rest])


def first_problems(error: ValidationError) -> tuple[list[Any], list[str]]:
    """Return pydantic's first error records, and in words how many others there are, if any."""
    problems = error.errors(include_url=False)
    more = len(problems) - _TOLD
    return list(problems[:_TOLD]), [f"and {more:,} more of the kind"] if more > 0 else []


def describe_problem(problem: Any) -> str:
    """Return one of pydantic's error records in words: the field, the rule and the value."""
    field = ".".join(show_path(str(part)) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = _WORDS.get(problem["type"], message).removesuffix(".")
    silent = problem["type"] in _WITHOUT_VALUE or isinstance(problem["input"], dict)
    secret = not _MAY_BE_SECRET.isdisjoint(problem["loc"])
    given = "" if silent or secret else f" Got {show_value(problem['input'])}."
    return f"{field}: {message}.{given}" if field else f"{message}.{given}"


def show_value(value: object) -> str:
    """Return a value as a message repeats it: cut short, and without logins of URLs."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a whole number of thousands of digits, say
        text = f"<a {type(value).__name__} too large to show>"
    text = _LOGIN.sub(r"\1…@", text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def show_path(path: str | Path) -> str:
    """Return a path, or another name, as a message shows it: printable and not overlong."""
    text = printable(_LOGIN.sub(r"\1…@", str(path)))
    return text if len(text) <= 4 * _SHOWN else f"{text[: 2 * _SHOWN]}…{text[-_SHOWN:]}"


def printable(text: str) -> str:
    """Return a text on one line, with escapes for all that does not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
