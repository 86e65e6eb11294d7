"""The YAML file of a space: found by name or path, read, and checked with the editor itself."""

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, final

import yaml
from optuna.distributions import CategoricalDistribution
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuner.editing.editor import Editor
from tuner.editing.model_names import is_model_name, resolved_model
from tuner.editors import find_editor
from tuner.errors import ConfigError, unknown_name
from tuner.files.paths import absolute, is_spelled_as_path
from tuner.files.shipped import shipped_folder
from tuner.files.yaml_file import line_of, read_yaml
from tuner.search.dimensions import (
    KINDS,
    Dimension,
    as_taken_by,
    corners,
    draw,
    extremes,
    read_dimension,
)
from tuner.search.space import Branch, Space
from tuner.validation import describe_problem, first_problems

_DRAWS = 40


def space_names() -> tuple[str, ...]:
    """Return the names of the spaces that travel with `tuner`."""
    return tuple(sorted(path.stem for path in shipped_folder("search_spaces").glob("*.yaml")))


def load_space(name_or_path: str | Path) -> Space:
    """Return a space that travels with `tuner`, by name, or one of your own, by path.

    Raises:
        ConfigError: there is no such space, or its file breaks rules; all broken rules are
            reported together, one `file:line` each.
    """
    path = find_space_file(name_or_path)
    return _load(path, ancestors=())


def find_space_file(name_or_path: str | Path) -> Path:
    """Return the file of a space.

    Raises:
        ConfigError: there is no such space.
    """
    name = str(name_or_path)
    if os.path.isabs(resolved_space(name)):
        return Path(os.path.expanduser(name))
    if name not in space_names():
        raise unknown_name("search space", name, space_names())
    return shipped_folder("search_spaces") / f"{name}.yaml"


def resolved_space(name: str, start: Path | None = None) -> str:
    """Return the absolute path of a space's file, from `start` or else the working directory.

    Only a plain name without a suffix is that of a shipped space.
    """
    is_path = "/" in name or is_spelled_as_path(name) or name.lower().endswith((".yaml", ".yml"))
    return str(absolute(name, start)) if is_path else name


@final
class _SpaceFile(BaseModel):
    """The keys of a space's YAML file. Each hyperparameter is looked at on its own later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str | None = None
    editor: str | None = None
    editors: tuple[str, ...] | None = Field(default=None, min_length=2)
    fixed: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_or_several_editors(self) -> Self:
        if (self.editor is None) == (self.editors is None):
            raise ValueError("either `editor` (one) or `editors` (several) must be given.")
        if self.editors is not None and (self.fixed or self.search):
            raise ValueError("with `editors`, `fixed` and `search` belong into their own files.")
        return self


@final
class _Problems:
    """The broken rules of one file, gathered so that all are reported together."""

    def __init__(self, path: Path, node: yaml.Node | None) -> None:
        self._path = path
        self._node = node
        self._gathered: list[tuple[int, str]] = []
        self._told: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._gathered)

    def add(self, location: tuple[int | str, ...], message: str, once: str | None = None) -> None:
        """Add a complaint; of those that share a `once`, the first."""
        if once is not None and once in self._told:
            return
        if once is not None:
            self._told.add(once)
        problem = (line_of(self._node, location), message)
        if problem not in self._gathered:
            self._gathered.append(problem)

    def add_from(
        self, error: ValidationError, within: tuple[int | str, ...] = (), skip: int = 0
    ) -> None:
        """Add pydantic's complaints about the part `within`; `skip` drops a union's tag."""
        for problem in first_problems(error)[0]:
            location = (*within, *problem["loc"][skip:])
            self.add(location, describe_problem({**problem, "loc": location}))

    def raise_if_any(self) -> None:
        if self._gathered:
            lines = [f"{self._path}:{line}: {message}" for line, message in sorted(self._gathered)]
            raise ConfigError("\n".join(lines))


def _load(path: Path, ancestors: tuple[Path, ...]) -> Space:
    node, content = read_yaml(path)
    problems = _Problems(path, node)
    try:
        file = _SpaceFile.model_validate(content)
    except ValidationError as error:
        problems.add_from(error)
        problems.raise_if_any()
        raise
    branches: tuple[Branch, ...]
    if file.editors is None:
        branches = tuple(_read_branch(path, file, problems))
    else:
        branches = tuple(_read_branches(path, file.editors, problems, (*ancestors, path)))
    problems.raise_if_any()
    return Space(name=path.stem, branches=branches)


def _read_branches(
    path: Path, names: tuple[str, ...], problems: _Problems, ancestors: tuple[Path, ...]
) -> Iterator[Branch]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        location = ("editors", index)
        try:
            file = find_space_file(name)
            if not file.is_absolute():
                file = path.parent / file
            if any(os.path.realpath(file) == os.path.realpath(outer) for outer in ancestors):
                problems.add(location, f"the space {name!r} contains itself.")
                continue
            space = _load(file, ancestors)
        except ConfigError as error:
            problems.add(location, str(error))
            continue
        for branch in space.branches:
            if branch.name in seen:
                problems.add(location, f"the space {branch.name!r} stands twice.")
            seen.add(branch.name)
            yield branch


def _read_branch(path: Path, file: _SpaceFile, problems: _Problems) -> Iterator[Branch]:
    search: dict[str, Dimension] = {}
    for parameter, entry in file.search.items():
        try:
            search[parameter] = read_dimension(entry)
        except ValidationError as error:
            tagged = isinstance(entry, dict) and entry.get("type") in KINDS
            problems.add_from(error, ("search", parameter), skip=1 if tagged else 0)
    try:
        editor = find_editor(str(file.editor), path.parent)
    except ConfigError as error:
        problems.add(("editor",), str(error))
        return
    fields = editor.model_fields
    for section, names in (("fixed", file.fixed), ("search", file.search)):
        for parameter in names:
            if parameter not in fields:
                unknown = unknown_name(f"hyperparameter of {editor.name()}", parameter, fields)
                problems.add((section, parameter), str(unknown))
    for parameter in file.fixed.keys() & file.search.keys():
        problems.add(("search", parameter), f"{parameter!r} is both fixed and searched.")
    for parameter, field in fields.items():
        if field.is_required() and parameter not in file.fixed.keys() | file.search.keys():
            problems.add(
                ("search",),
                f"{editor.name()} needs {parameter!r}: it must be fixed or searched.",
            )
    fixed = dict(file.fixed)
    for parameter in (key for key, field in fields.items() if is_model_name(field)):
        _resolve_models(parameter, fixed, search, path.parent, problems)
    known_fixed = {key: value for key, value in fixed.items() if key in fields}
    for key, dimension in search.items():
        if key in fields and isinstance(dimension, CategoricalDistribution):
            search[key] = as_taken_by(fields[key], dimension)
    known_search = {key: range_ for key, range_ in search.items() if key in fields}
    _check_values(editor, known_fixed, known_search, problems)
    branch = Branch(name=path.stem, editor=editor, fixed=fixed, search=search)
    if not problems and known_search.keys() == file.search.keys():
        _check_draws(branch, problems)
    yield branch


def _resolve_models(
    parameter: str,
    fixed: dict[str, Any],
    search: dict[str, Dimension],
    folder: Path,
    problems: _Problems,
) -> None:
    """Let the paths of models that a space names start at its file."""
    value, dimension = fixed.get(parameter), search.get(parameter)
    try:
        if isinstance(value, str):
            fixed[parameter] = resolved_model(value, folder)
        if isinstance(dimension, CategoricalDistribution):
            models = tuple(
                resolved_model(model, folder) if isinstance(model, str) else model
                for model in dimension.choices
            )
            search[parameter] = CategoricalDistribution(models)
    except ConfigError as error:
        section = "fixed" if isinstance(value, str) else "search"
        problems.add((section, parameter), f"{parameter}: {error}")


def _check_values(
    editor: type[Editor],
    fixed: Mapping[str, Any],
    search: Mapping[str, Dimension],
    problems: _Problems,
) -> None:
    """Let the editor judge every fixed value and both ends of every range."""
    ends = {key: list(extremes(dimension).values()) for key, dimension in search.items()}
    combinations: list[tuple[str | None, str, Mapping[str, Any]]] = [
        (None, "low", {key: values[0] for key, values in ends.items()}),
        (None, "high", {key: values[-1] for key, values in ends.items()}),
        *corners(search),
    ]
    for searched, end, values in combinations:
        try:
            editor.model_validate({**fixed, **values})
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                place = problem["loc"][:1]
                if problem["type"] == "missing":
                    continue  # reported by name above
                if not place:
                    problems.add(("search",), describe_problem(problem))
                elif place[0] in fixed:
                    problems.add(("fixed", *place), describe_problem(problem))
                elif place[0] == searched:
                    location = ("search", *place, *end.split("."))
                    problems.add(location, describe_problem(problem))


def _check_draws(branch: Branch, problems: _Problems) -> None:
    """Let the editor judge values within the ranges too, as a search would draw them."""
    source = random.Random(0)
    refused: list[ValidationError] = []
    for _ in range(_DRAWS):
        values = {key: draw(range_, source) for key, range_ in branch.search.items()}
        try:
            branch.editor.model_validate({**branch.fixed, **values})
        except ValidationError as error:
            refused.append(error)
    for refusal in refused:
        for problem in refusal.errors(include_url=False):
            key = str(problem["loc"][0]) if problem["loc"] else None
            if key in branch.search:
                message = f"not every value is taken: {describe_problem(problem)}"
                problems.add(("search", key), message, once=key)
    if len(refused) == _DRAWS and not problems:
        problems.add_from(refused[0], ("search",))
