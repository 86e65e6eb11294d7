"""YAML becomes types here, once, at the edge; every complaint names the file and the line.

Only plain data is taken: mappings, lists, text, numbers, true, false and null. Size, depth and the
nodes that aliases stand for are bounded before anything walks them: ten lines of YAML can stand for
a billion nodes. Beyond YAML 1.1, `1e-4` is a number, and a date is text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tuner.errors import ConfigError
from tuner.files.text_file import read_text
from tuner.validation import describe_problem, first_problems, show_path, show_value

T = TypeVar("T", bound=BaseModel)

_MOST_BYTES = 200_000
_MOST_NODES = 20_000
_DEEPEST = 50
_DIGITS = 300
"""Digits of a whole number; more than these do not even fit a float."""

_TAG = "tag:yaml.org,2002:"
_NUMBERS = frozenset({_TAG + "bool", _TAG + "int", _TAG + "float"})
_PLAIN = _NUMBERS | {_TAG + kind for kind in ("null", "str", "seq", "map", "merge")}
_NEVER_IMPLIED = frozenset({_TAG + "timestamp", _TAG + "value"})


def load_yaml(path: Path, into: type[T]) -> T:
    """Return the file's content as an `into`, validated.

    Raises:
        ConfigError: the file is absent, not YAML or breaks a rule of `into`; all broken rules are
            reported together, one `file:line` each.
    """
    node, content = read_yaml(path)
    try:
        return TypeAdapter(into).validate_python(content)
    except ValidationError as error:
        raise ConfigError(describe_errors(path, node, error)) from None


def read_yaml(path: Path) -> tuple[yaml.Node, Any]:
    """Return the file's syntax tree, which knows the lines, and its plain content.

    Raises:
        ConfigError: the file is absent, unreadable, too large, empty or not valid YAML, or repeats
            a key.
    """
    text = read_text(path, most_bytes=_MOST_BYTES)
    try:
        node = _compose(text)
        if node is None:
            raise ConfigError(f"{show_path(path)}: the file is empty.")
        return node, _construct(node)
    except _YamlError as error:
        raise ConfigError(f"{show_path(path)}:{error.line}: {error}") from None


def parse_yaml(text: str) -> Any:
    """Return the value that a text holds, or None where it is empty.

    Raises:
        ConfigError: the text is too long or not valid YAML, or repeats a key.
    """
    if len(text) > _MOST_BYTES:
        raise ConfigError(f"at most {_MOST_BYTES:,} characters are read, but got {len(text):,}.")
    try:
        node = _compose(text)
        return None if node is None else _construct(node)
    except _YamlError as error:
        raise ConfigError(str(error)) from None


def line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Return the line, from 1, of the deepest part of `location` that the file has."""
    if node is None:
        return 1
    line = node.start_mark.line
    for key in location:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        # Any other part of a location names a branch of a union, which the file does not show.
    return line + 1


def describe_errors(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    """Return one line per broken rule: where, what must hold, what came."""
    problems, rest = first_problems(error)
    lines = (
        f"{show_path(path)}:{line_of(node, problem['loc'])}: {describe_problem(problem)}"
        for problem in problems
    )
    return "\n".join([*lines, *(f"{show_path(path)}: {more}" for more in rest)])


def dump_yaml(value: Any) -> str:
    """Return plain data as YAML that is read back as the same."""
    return str(yaml.dump(value, Dumper=PlainDumper, sort_keys=False, allow_unicode=True))


class _YamlError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _complaint(error: yaml.MarkedYAMLError) -> _YamlError:
    line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
    return _YamlError(f"not valid YAML: {error.problem}.", line)


class _Loader(yaml.SafeLoader):
    """YAML's plain data; a date is text, and `1e-4` is a number, as in YAML 1.2 and JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NEVER_IMPLIED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class PlainDumper(yaml.SafeDumper):
    """Writes text that the loader would take for a number between quotation marks."""


for _class in (_Loader, PlainDumper):
    _class.add_implicit_resolver(
        _TAG + "float",
        # Three digits of exponent are all that floats need; 12e45678 is rather a revision.
        re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]{1,3}$"),
        list("-+.0123456789"),
    )


def _compose(text: str) -> yaml.Node | None:
    """Return the syntax tree of a text, which is safe to walk."""
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _complaint(error) from None
    except yaml.reader.ReaderError as error:
        raise _YamlError(
            f"not valid YAML: the character U+{error.character:04X} is not allowed.",
            text.count("\n", 0, error.position) + 1,
        ) from None
    except (ValueError, OverflowError):  # of chr(), for "\UFFFFFFFF"
        raise _YamlError("not valid YAML: an escape names no character.", 1) from None
    if node is not None:
        _check_keys(node)
    return node


def _check_events(text: str) -> None:
    """Bound depth and size of what a text stands for; no step here depends on either."""
    sizes: dict[str, tuple[int, int]] = {}  # nodes and depth of what an anchor names
    open_nodes: list[tuple[str | None, int, int]] = []  # anchor, nodes and depth below so far

    def add(nodes: int, depth: int, line: int) -> None:
        if open_nodes:
            anchor, below, deepest = open_nodes.pop()
            open_nodes.append((anchor, below + nodes, max(deepest, depth)))
            if below + nodes > _MOST_NODES:
                raise _YamlError(
                    f"stands for more than {_MOST_NODES:,} values, with its aliases.", line
                )
        if len(open_nodes) + depth > _DEEPEST:
            raise _YamlError(f"more than {_DEEPEST} lists and mappings within one another.", line)

    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        match event:
            case yaml.AliasEvent(anchor=anchor):
                if any(anchor == name for name, _, _ in open_nodes):
                    raise _YamlError(f"the alias *{anchor} stands within what it names.", line)
                # An alias of nothing is the composer's to refuse.
                add(*sizes.get(str(anchor), (1, 0)), line)
            case yaml.ScalarEvent(anchor=anchor, value=value):
                if any("\ud800" <= character <= "\udfff" for character in value):
                    raise _YamlError("half of a surrogate pair is not a character.", line)
                if anchor is not None:
                    sizes[anchor] = (1, 0)
                add(1, 0, line)
            case yaml.CollectionStartEvent(anchor=anchor):
                open_nodes.append((anchor, 1, 1))
                add(0, 0, line)
            case yaml.CollectionEndEvent():
                anchor, nodes, depth = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = (nodes, depth)
                add(nodes, depth + 1 if open_nodes else depth, line)
            case _:
                pass


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark is not None else 1


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield a node and all below it; one that aliases name is yielded once."""
    todo, seen = [node], {id(node)}
    while todo:
        node = todo.pop()
        yield node
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        for part in below:
            if id(part) not in seen:
                seen.add(id(part))
                todo.append(part)


def _check_keys(root: yaml.Node) -> None:
    """Refuse what is not plain data: keys that are lists, repeated keys, tags of other types."""
    for node in _nodes(root):
        if node.tag not in _PLAIN:
            raise _YamlError(f"the tag {show_value(node.tag)} is not known here.", _line(node))
        if not isinstance(node, yaml.MappingNode):
            continue
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _YamlError("a key must be text, not a list or a mapping.", _line(key))
            if key.value in seen:
                raise _YamlError(f"the key {show_value(key.value)} stands twice.", _line(key))
            seen.add(key.value)


def _construct(root: yaml.Node) -> Any:
    """Return the content of a tree."""
    for node in _nodes(root):
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS:
            _check_scalar(node)
    loader = _Loader("")
    try:
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise _complaint(error) from None
    finally:
        loader.dispose()


def _check_scalar(node: yaml.ScalarNode) -> None:
    def refuse() -> NoReturn:
        kind = node.tag.rpartition(":")[2]
        raise _YamlError(f"{show_value(node.value)} is not of the type {kind}.", _line(node))

    if len(node.value) > _DIGITS:
        raise _YamlError(f"a number of {len(node.value):,} characters.", _line(node))
    loader = _Loader("")
    try:
        value = loader.construct_object(node)
    except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
        refuse()
    finally:
        loader.dispose()
    if isinstance(value, int) and value.bit_length() > 1000:
        refuse()  # of few characters, in YAML's numbers to the base of sixty
