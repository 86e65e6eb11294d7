"""How a valid file is changed: its values, its bytes, or what stands in its place."""

import copy
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import yaml

Path_ = tuple[str | int, ...]


class Format(StrEnum):
    """What a file holds, so that its values can be changed and not only its bytes."""

    JSON = "json"
    JSON_LINES = "jsonl"
    YAML = "yaml"
    TENSORS = "safetensors"
    TEXT = "text"


@dataclass(frozen=True)
class Raw:
    """Text that stands in a file as it is, where a value would be."""

    text: str


_LONG = "x" * 3000
_DEEP = "[" * 5000

# Values that are legal where they stand but seldom expected there.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 10**6, 10**20, -(10**20), 2**31, 2**63, 2**64, 10**300),
    *(0.0, -0.5, 0.5, 1e-320, 1e300, -1e300),
    *("", " ", "a", "\n", "\t", "\u2028", "\ufeff", "é東京😀", "0", "1e-4", "nan", "auto", _LONG),
    *("../..", "/", "/dev/null", "~", "a/b", "a\u0000b", "builtin:neox", "builtin:", "lora"),
    *(
        "tuner.errors:TunerError",
        "postgresql://u:SESAME@h/d",
        "mysql://h",
        "os:system",
        ":",
        "{}",
    ),
    *([], {}, [[]], [{}], {"": 1}, [1, "a", None], {"a": {"a": 1}}, [0] * 300, ["a"] * 300),
)
JSON_TEXT = tuple(
    Raw(text)
    for text in (
        *("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 400, "1e-999", "01"),
        *(r'"\ud800"', r'"\udfff\ud800"', r'{"\ud800": 1}', '{"a": 1, "a": 2}', r'"\u0000"'),
        *(_DEEP, '{"a":' * 3000, "[" * 150 + "]" * 150, "", "nul", "'a'", "{", "]", '"'),
    )
)
_LETTERS = "abcdefghij"
_BOMB = (
    "{a: &a [x, x, x, x, x, x, x, x, x], "
    + ", ".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise(_LETTERS)
    )
    + "}"
)
YAML_TEXT = tuple(
    Raw(text)
    for text in (
        *("&a [*a]", "{? [a] : 1}", "2023-99-99", "!!int abc", "9" * 5000, _DEEP, r'"\UFFFFFFFF"'),
        *(
            r'"\ud800"',
            ".inf",
            "-.inf",
            ".nan",
            "1e-4",
            "1:2:3",
            "!!binary abc",
            "!!set {a}",
            _BOMB,
        ),
        *("!!python/object:os.system a", "*none", "!!bool x", "!!timestamp x", "{a: 1, a: 2}", "="),
        *("0x_", "!!float ''", "{<<: {a: 1}}", "{<<: 3}", "!!null x", "@", "`", "%", "- -", "'"),
    )
)
BYTES = (
    *(b"\x00", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\xaf"),
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\t",
        b" ",
        b"{",
        b"[",
        b'"',
        b"\\",
        b":",
        b",",
        b"-",
        b"&a",
        b"\x85",
    ),
)


def change_file(path: Path, format: Format, draw: Random) -> str:
    """Change a file in one of the ways that its format has; return in words how."""
    ways: list[tuple[int, Callable[[Path, Random], str]]] = [(5, change_bytes), (1, put_special)]
    match format:
        case Format.JSON | Format.JSON_LINES | Format.YAML:
            ways.append((10, lambda at, source: _change_values(at, format, source)))
        case Format.TENSORS:
            ways.append((10, change_tensors))
        case Format.TEXT:
            ways.append((3, change_lines))
    (way,) = draw.choices([way for _, way in ways], [weight for weight, _ in ways])
    return way(path, draw)


def change_bytes(path: Path, draw: Random) -> str:
    """Flip, cut, insert, repeat or remove bytes."""
    content = bytearray(path.read_bytes())
    told = []
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) + 1)
        way = draw.choice(("flip", "cut", "insert", "repeat", "remove", "begin", "end", "empty"))
        told.append(f"{way} at {at}")
        match way:
            case "flip" if at < len(content):
                content[at] ^= 1 << draw.randrange(8)
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw.choice(BYTES)
            case "repeat":
                content[at:at] = content[at : at + draw.randint(1, 200)]
            case "remove":
                del content[at : at + draw.randint(1, 50)]
            case "begin":
                content[:0] = draw.choice(BYTES)
            case "end":
                content += draw.choice(BYTES)
            case "empty" if draw.random() < 0.2:
                content.clear()
    path.write_bytes(content)
    return ", ".join(told)


def put_special(path: Path, draw: Random) -> str:
    """Put something that is not a regular file, or nothing, in the place of a file."""
    content = path.read_bytes()
    path.unlink()
    way = draw.choice(("absent", "pipe", "folder", "circle", "device", "link", "forbidden"))
    match way:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "circle":
            path.symlink_to(path.name)
        case "device":
            _make_device(path)
        case "link":
            path.symlink_to("nothing here")
        case "forbidden":
            path.write_bytes(content)
            path.chmod(0)
    return way


def _make_device(path: Path) -> None:
    """Put an endless device there, one of our own; a pipe where none can be made."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        os.mkfifo(path)


def change_lines(path: Path, draw: Random) -> str:
    """Repeat, remove or swap lines, or put a long or odd one among them."""
    lines = path.read_bytes().split(b"\n")
    at = draw.randrange(len(lines))
    way = draw.choice(("repeat", "remove", "odd", "long"))
    match way:
        case "repeat":
            lines[at:at] = [lines[at]] * draw.choice((1, 50))
        case "remove":
            del lines[at]
        case "odd":
            lines[at:at] = [str(draw.choice(VALUES)).encode("utf-8", "surrogatepass")]
        case "long":
            lines[at:at] = [b"word " * 20_000]
    path.write_bytes(b"\n".join(lines))
    return f"{way} line {at + 1}"


def change_tensors(path: Path, draw: Random) -> str:
    """Change names, shapes, types and numbers of tensors, or the file's own metadata."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    names = sorted(tensors)
    name = draw.choice(names)
    one = tensors[name]
    way = draw.choice(
        ("shape", "type", "scalar", "nan", "rename", "remove", "double", "values", "grow", "zero")
    )
    match way:
        case "shape":
            tensors[name] = one.flatten() if draw.random() < 0.5 else one.unsqueeze(0)
        case "type":
            kinds = (torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)
            tensors[name] = one.to(draw.choice((*kinds, torch.bfloat16, torch.int8, torch.float32)))
        case "scalar":
            tensors[name] = torch.tensor(draw.choice((0, 1.5, True, -3)))
        case "nan":
            odd = draw.choice((float("nan"), float("inf")))
            tensors[name] = torch.full(one.shape, odd, dtype=torch.float32)
        case "rename":
            odd_names = (
                "",
                ".",
                "a",
                f"{name}.x",
                name.rpartition(".")[0],
                "transformer.ln_f.weight",
            )
            tensors[draw.choice((*odd_names, f"x.{name}"))] = tensors.pop(name)
        case "remove":
            del tensors[name]
        case "double":
            tensors[f"{name}{draw.choice(('2', '.A', '.rows'))}"] = one.clone()
        case "values":
            change = draw.choice((-1, 10**6, 0.5, -(2.0**40)))
            tensors[name] = one.to(torch.float64).add(change).to(one.dtype)
        case "grow":
            tensors[name] = torch.cat([one, one], dim=0) if one.ndim else one.repeat(3)
        case "zero":
            tensors[name] = one.flatten()[:0]
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return f"{way} of {name!r}"


def _change_values(path: Path, format: Format, draw: Random) -> str:
    text = path.read_text(encoding="utf-8")
    if format is Format.YAML:
        content = yaml.safe_load(text)
    elif format is Format.JSON_LINES:
        content = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        content = json.loads(text)
    raw = YAML_TEXT if format is Format.YAML else JSON_TEXT
    told = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content, how = change_value(content, raw, draw)
        told.append(how)
    if format is Format.JSON_LINES and isinstance(content, list):
        written = "\n".join(write_value(row) for row in content) + "\n"
    else:
        written = write_value(content)
    path.write_bytes(written.encode("utf-8", "surrogatepass"))
    return "; ".join(told)


def change_value(content: Any, raw: tuple[Raw, ...], draw: Random) -> tuple[Any, str]:
    """Return a copy with one value replaced, removed, doubled or of another type, and how."""
    content = copy.deepcopy(content)
    places = [place for place in _places(content) if place]
    if not places:
        return draw.choice(VALUES), "the whole"
    # Seldom the whole: little is left to be read then.
    if draw.random() < 0.03:
        return draw.choice((*VALUES, *raw)), "the whole"
    place = draw.choice(places)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    value = parent[key]
    way = draw.choice(("replace", "replace", "raw", "remove", "double", "retype", "near", "rename"))
    match way:
        case "replace":
            parent[key] = copy.deepcopy(draw.choice(VALUES))
        case "raw":
            parent[key] = draw.choice(raw)
        case "remove":
            del parent[key]
        case "double" if isinstance(parent, list):
            parent.insert(draw.randrange(len(parent) + 1), copy.deepcopy(value))
        case "double":
            parent[f"{key}2"] = copy.deepcopy(value)
        case "retype":
            parent[key] = _retyped(value, draw)
        case "near":
            parent[key] = _near(value, draw)
        case "rename" if isinstance(parent, dict):
            parent[draw.choice(("", "name", f" {key}", str(key).upper(), _LONG))] = parent.pop(key)
    return content, f"{way} {'.'.join(map(str, place))}"


def write_value(value: Any) -> str:
    """Return a value as JSON, which is YAML too, with raw text where it stands."""
    match value:
        case Raw(text=text):
            return text
        case dict():
            parts = (f"{write_value(str(key))}: {write_value(item)}" for key, item in value.items())
            return "{" + ", ".join(parts) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(write_value, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False, default=str)


def _places(content: Any, above: Path_ = ()) -> Iterator[Path_]:
    yield above
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _places(value, (*above, key))
    elif isinstance(content, list):
        # Of long lists the first entries stand for all.
        for index, value in enumerate(content[:20]):
            yield from _places(value, (*above, index))


def _retyped(value: Any, draw: Random) -> Any:
    match draw.choice(("text", "list", "mapping", "number", "truth")):
        case "text":
            return str(value)
        case "list":
            return [value]
        case "mapping":
            return {"value": value}
        case "number":
            return len(str(value))
        case _:
            return bool(value)


def _near(value: Any, draw: Random) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return draw.choice(
                (value + 1, value - 1, -value, value * 1000, value / 7, value * 1e-9)
            )
        case str():
            return draw.choice((value + " ", " " + value, value.upper(), value[1:], value * 3))
        case list():
            return draw.choice((value * 2, value[:1], value[1:], list(reversed(value))))
        case _:
            return draw.choice(VALUES)
