"""YAML becomes types here, once, at the edge; every complaint names the file and the line."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tuner.errors import ConfigError

T = TypeVar("T", bound=BaseModel)

# What stands under these keys is never repeated.
_MAY_BE_SECRET = frozenset({"storage", "ledger", "username", "password"})


def load_yaml(path: Path, into: type[T]) -> T:
    """Return the file's content as an `into`, validated.

    Raises:
        ConfigError: the file is absent, is no YAML or breaks a rule of `into`; all broken rules
            are reported together, one `file:line` each.
    """
    node, content = read_yaml(path)
    try:
        return TypeAdapter(into).validate_python(content)
    except ValidationError as error:
        raise ConfigError(describe_errors(path, node, error)) from None


def read_yaml(path: Path) -> tuple[yaml.Node | None, Any]:
    """Return the file's syntax tree, which knows the lines, and its plain content.

    Raises:
        ConfigError: the file is absent, unreadable, or no valid YAML, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(path, node)
        return node, yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Return the line, from 1, of the deepest part of `location` that the file has."""
    if node is None:
        return 1
    line = node.start_mark.line
    for key in location:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        # Any other part of a location names a branch of a union, which the file does not show.
    return line + 1


def describe_errors(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    """Return one line per broken rule: where, what must hold, what came."""
    return "\n".join(
        f"{path}:{line_of(node, problem['loc'])}: {describe_problem(problem)}"
        for problem in error.errors(include_url=False)
    )


def describe_problem(problem: Any) -> str:
    """Return one of pydantic's error records in words: the field, the rule and the value."""
    field = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    # A whole mapping tells nobody anything, and may hold a secret.
    silent = problem["type"] == "missing" or isinstance(problem["input"], dict)
    secret = not _MAY_BE_SECRET.isdisjoint(problem["loc"])
    given = "" if silent or secret else f" Got {problem['input']!r}."
    return f"{field}: {message}.{given}".replace("..", ".") if field else f"{message}{given}"


def _refuse_repeated_keys(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(
                    f"{path}:{key.start_mark.line + 1}: the key {key.value!r} stands twice."
                )
            seen.add(key.value)
            _refuse_repeated_keys(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(path, item)
