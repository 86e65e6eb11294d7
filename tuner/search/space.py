"""Which hyperparameters a study may try: a YAML file becomes a typed, checked space."""

import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, final

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tuner.editing.companions import Companions
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel, is_model_name, resolved_model
from tuner.editing.task import Task
from tuner.editors import find_editor
from tuner.errors import ConfigError, unknown_name
from tuner.files.paths import absolute, is_spelled_as_path
from tuner.files.shipped import shipped_folder
from tuner.files.yaml_file import line_of, parse_yaml, read_yaml
from tuner.validation import describe_problem, first_problems

EDITOR = "editor"
"""The name under which the choice among several editors is a hyperparameter."""

# Beyond this, floats and so the samplers tell whole numbers no longer apart.
_WHOLE = 2**53
_DRAWS = 40

Scalar: TypeAlias = bool | int | float | str | None


class _Dimension(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class FloatRange(_Dimension):
    """Real numbers from `low` to `high`, on a logarithmic scale or in steps if asked for."""

    type: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _spans_a_range(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step)
        return self

    @property
    def distribution(self) -> FloatDistribution:
        """The same in Optuna's words."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def extremes(self) -> Mapping[str, Scalar]:
        """The values at the ends, by the YAML key that gives them."""
        return {"low": self.low, "high": self.high}

    def draw(self, source: random.Random) -> float:
        """Return a value of the range."""
        if self.step is not None:
            steps = round((self.high - self.low) / self.step)
            value = self.low + source.randint(0, steps) * self.step
        elif self.log:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        return min(max(value, self.low), self.high)


@final
class IntRange(_Dimension):
    """Whole numbers from `low` to `high`, both included."""

    type: Literal["int"]
    low: int = Field(ge=-_WHOLE, le=_WHOLE)
    high: int = Field(ge=-_WHOLE, le=_WHOLE)
    log: bool = False
    step: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _spans_a_range(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step if self.step != 1 else None)
        return self

    @property
    def distribution(self) -> IntDistribution:
        """The same in Optuna's words."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def extremes(self) -> Mapping[str, Scalar]:
        """The values at the ends, by the YAML key that gives them."""
        return {"low": self.low, "high": self.high}

    def draw(self, source: random.Random) -> int:
        """Return a value of the range."""
        if not self.log:
            return self.low + source.randint(0, (self.high - self.low) // self.step) * self.step
        value = round(math.exp(source.uniform(math.log(self.low), math.log(self.high))))
        return min(max(value, self.low), self.high)


@final
class Choice(_Dimension):
    """One of several unordered values."""

    type: Literal["categorical"]
    choices: tuple[Scalar, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        # Trials are kept as JSON, which has no such numbers.
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.choices):
            raise ValueError(f"`choices` must be finite, but got {list(self.choices)}.")
        if len({(type(value), value) for value in self.choices}) != len(self.choices):
            raise ValueError(f"`choices` must differ, but got {list(self.choices)}.")
        return self

    @property
    def distribution(self) -> CategoricalDistribution:
        """The same in Optuna's words."""
        return CategoricalDistribution(self.choices)

    @property
    def extremes(self) -> Mapping[str, Scalar]:
        """Every choice; a category has no ends."""
        return {f"choices.{index}": value for index, value in enumerate(self.choices)}

    def draw(self, source: random.Random) -> Scalar:
        """Return one of the choices."""
        return source.choice(self.choices)

    def as_taken_by(self, field: FieldInfo) -> Self:
        """Return the choice with numbers where the editor's field reads text as such."""
        reader: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)

        def read(value: Scalar) -> Scalar:
            if isinstance(value, str):
                with suppress(ValidationError):
                    taken = reader.validate_python(value)
                    return taken if isinstance(taken, int | float) else value
            return value

        return self.model_copy(update={"choices": tuple(read(value) for value in self.choices)})


Dimension: TypeAlias = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not low < high:
        raise ValueError(f"`low < high` must hold, but got low={low:g}, high={high:g}.")
    if log and low <= 0:
        raise ValueError(f"`low > 0` must hold on a logarithmic scale, but got low={low:g}.")
    if not math.isfinite(high - low):
        raise ValueError(f"the range must be finite, but got low={low:g}, high={high:g}.")
    if log and step is not None:
        raise ValueError("`log` and `step` exclude each other.")
    if step is not None:
        steps = (high - low) / step
        if steps > _WHOLE:
            raise ValueError(f"`step` is too small for this range: got step={step:g}.")
        if not math.isclose(steps, round(steps), rel_tol=0, abs_tol=1e-6) or round(steps) < 1:
            raise ValueError(
                f"`step` must divide the range, but got low={low:g}, high={high:g}, step={step:g}."
            )


@final
class Branch(BaseModel):
    """The space of one editor: what is fixed and what is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    editor: type[Editor]
    fixed: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Dimension] = Field(default_factory=dict)

    def build(self, searched: Mapping[str, Any]) -> Editor:
        """Return the editor with the fixed and these searched hyperparameters.

        Raises:
            ConfigError: the editor does not take this combination of values.
        """
        try:
            return self.editor.model_validate({**self.fixed, **searched})
        except ValidationError as error:
            problems = "; ".join(describe_problem(one) for one in error.errors(include_url=False))
            raise ConfigError(f"{self.name}: {problems}") from None

    def corners(self) -> Iterator[Editor]:
        """Yield editors that hold every end of every range once, as far as they are valid."""
        lows = {key: next(iter(one.extremes.values())) for key, one in self.search.items()}
        for key, one in self.search.items():
            for value in one.extremes.values():
                with suppress(ConfigError):
                    yield self.build({**lows, key: value})


@final
class Space(BaseModel):
    """What a study searches: one editor's hyperparameters, or those of several editors.

    With several, the editor is itself a hyperparameter called `editor`, and each of the others
    carries its editor's name in front (`lora.rank`) and exists only where that editor is chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    branches: tuple[Branch, ...] = Field(min_length=1)

    @property
    def conditional(self) -> bool:
        """Whether which hyperparameters exist depends on the editor."""
        return len(self.branches) > 1

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Every hyperparameter that is searched, of all editors."""
        found = dict(
            item for branch in self.branches for item in self._distributions_of(branch).items()
        )
        return {**self._choice_of_editor, **found}

    def active(self, parameters: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Return the hyperparameters that exist for the editor chosen in `parameters`."""
        branch = self.branch(parameters)
        return {**self._choice_of_editor, **self._distributions_of(branch)}

    def branch(self, parameters: Mapping[str, Any]) -> Branch:
        """Return the editor's space that `parameters` belong to.

        Raises:
            KeyError: the parameters are not from this space.
        """
        if not self.conditional:
            return self.branches[0]
        by_name = {branch.name: branch for branch in self.branches}
        return by_name[parameters[EDITOR]]

    def draw(self, trial: BaseTrial, *, editor: str | None = None) -> dict[str, Any]:
        """Return a value for every hyperparameter that exists, as the trial's sampler proposes.

        Where `editor` is given, that editor is taken and the sampler is not asked for one.
        """
        drawn: dict[str, Any] = {}
        if self.conditional:
            drawn[EDITOR] = editor or trial.suggest_categorical(EDITOR, self._names)
        for name, distribution in self._distributions_of(self.branch(drawn)).items():
            drawn[name] = _suggest(trial, name, distribution)
        return drawn

    def suggest(self, trial: BaseTrial) -> Editor:
        """Return the editor that the trial's sampler proposes.

        Raises:
            ConfigError: the editor does not take this combination of values.
        """
        return self.build(self.draw(trial))

    def build(self, parameters: Mapping[str, Any]) -> Editor:
        """Return the editor with these hyperparameters, named as in `distributions`.

        Raises:
            ConfigError: the editor does not take this combination of values.
        """
        branch = self.branch(parameters)
        return branch.build({name: parameters[self._full(branch, name)] for name in branch.search})

    def check_task(self, task: Task) -> None:
        """Verify that a task has what the editors need wherever in this space they are.

        Raises:
            ConfigError: it has not.
        """
        for branch in self.branches:
            for editor in branch.corners():
                editor.check_task(task)

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the editors can edit a model wherever in this space they are.

        Raises:
            ConfigError: they cannot.
        """
        for branch in self.branches:
            for editor in branch.corners():
                editor.check_model(model, companions)

    @property
    def definition(self) -> dict[str, Any]:
        """The space as plain JSON values: two equal definitions search the same."""
        return {
            branch.name: {
                "editor": branch.editor.name(),
                "fixed": branch.fixed,
                "search": {key: one.model_dump() for key, one in branch.search.items()},
            }
            for branch in self.branches
        }

    @staticmethod
    def definition_from_before(definition: dict[str, Any]) -> dict[str, Any]:
        """Return a definition as it is now of one from when YAML's `1e-4` was text."""
        return {
            name: {**branch, "fixed": {k: _as_number(v) for k, v in branch["fixed"].items()}}
            if isinstance(branch, dict) and isinstance(branch.get("fixed"), dict)
            else branch
            for name, branch in definition.items()
        }

    @property
    def model_folders(self) -> tuple[str, ...]:
        """The folders of the models that editors read beside the one that they edit."""
        found: dict[str, None] = {}
        for branch in self.branches:
            for key, field in branch.editor.model_fields.items():
                dimension = branch.search.get(key)
                choices = dimension.choices if isinstance(dimension, Choice) else ()
                if is_model_name(field):
                    given = (branch.fixed.get(key), *choices)
                    found |= {
                        one: None for one in given if isinstance(one, str) and os.path.isabs(one)
                    }
        return tuple(found)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(branch.name for branch in self.branches)

    @property
    def _choice_of_editor(self) -> dict[str, BaseDistribution]:
        return {EDITOR: CategoricalDistribution(self._names)} if self.conditional else {}

    def _distributions_of(self, branch: Branch) -> dict[str, BaseDistribution]:
        return {self._full(branch, key): one.distribution for key, one in branch.search.items()}

    def _full(self, branch: Branch, name: str) -> str:
        return f"{branch.name}.{name}" if self.conditional else name


def _as_number(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ConfigError):
            read = parse_yaml(value)
            return read if isinstance(read, float) else value
    return value


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
        self._found: list[tuple[int, str]] = []

        self._told: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, location: tuple[int | str, ...], message: str, once: str | None = None) -> None:
        """Add a complaint; of those that share a `once`, the first."""
        if once is not None and once in self._told:
            return
        if once is not None:
            self._told.add(once)
        problem = (line_of(self._node, location), message)
        if problem not in self._found:
            self._found.append(problem)

    def add_from(
        self, error: ValidationError, within: tuple[int | str, ...] = (), skip: int = 0
    ) -> None:
        """Add pydantic's complaints about the part `within`; `skip` drops a union's tag."""
        for problem in first_problems(error)[0]:
            location = (*within, *problem["loc"][skip:])
            self.add(location, describe_problem({**problem, "loc": location}))

    def raise_if_any(self) -> None:
        if self._found:
            lines = [f"{self._path}:{line}: {message}" for line, message in sorted(self._found)]
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
            if any(os.path.realpath(file) == os.path.realpath(one) for one in ancestors):
                problems.add(location, f"the space {name!r} contains itself.")
                continue
            found = _load(file, ancestors)
        except ConfigError as error:
            problems.add(location, str(error))
            continue
        for branch in found.branches:
            if branch.name in seen:
                problems.add(location, f"the space {branch.name!r} stands twice.")
            seen.add(branch.name)
            yield branch


def _read_branch(path: Path, file: _SpaceFile, problems: _Problems) -> Iterator[Branch]:
    search: dict[str, Dimension] = {}
    reader: TypeAdapter[Dimension] = TypeAdapter(Dimension)
    for parameter, entry in file.search.items():
        try:
            search[parameter] = reader.validate_python(entry)
        except ValidationError as error:
            tagged = isinstance(entry, dict) and entry.get("type") in (
                "float",
                "int",
                "categorical",
            )
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
    for key, one in search.items():
        if key in fields and isinstance(one, Choice):
            search[key] = one.as_taken_by(fields[key])
    known_search = {key: one for key, one in search.items() if key in fields}
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
        if isinstance(dimension, Choice):
            models = tuple(
                resolved_model(one, folder) if isinstance(one, str) else one
                for one in dimension.choices
            )
            search[parameter] = dimension.model_copy(update={"choices": models})
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
    lows = {key: next(iter(one.extremes.values())) for key, one in search.items()}
    highs = {key: list(one.extremes.values())[-1] for key, one in search.items()}
    trials: list[tuple[str | None, str, Mapping[str, Any]]] = [
        (None, "low", lows),
        (None, "high", highs),
    ]
    for key, one in search.items():
        trials += [(key, end, {**lows, key: value}) for end, value in one.extremes.items()]
    for searched, end, values in trials:
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
        values = {key: one.draw(source) for key, one in branch.search.items()}
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


def _suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case _:
            raise TypeError(f"No hyperparameter is drawn from a {type(distribution).__name__}.")
