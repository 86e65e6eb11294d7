"""What the values of options stand for."""

from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import ValidationError

from tuner.errors import ConfigError, unknown_name
from tuner.files.yaml_file import parse_yaml
from tuner.validation import describe_problem, show_value

if TYPE_CHECKING:
    from tuner.editing.corpus import TextPart
    from tuner.editing.editor import Editor
    from tuner.editing.model import LanguageModel
    from tuner.evaluation.deviation.budget import Budget

_Member = TypeVar("_Member", bound=StrEnum)


def read_settings(settings: list[str]) -> dict[str, Any]:
    """Return `name=value` pairs, values read as YAML.

    Raises:
        ConfigError: a pair has no `=`, or its value is not valid YAML.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, mark, value = setting.partition("=")
        if not mark or not name:
            raise ConfigError(f"--set needs name=value, but got {show_value(setting)}.")
        try:
            values[name.strip()] = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"--set {name}: {show_value(value)}: {error}") from None
    return values


def read_editor(name: str, values: dict[str, Any]) -> "Editor":
    """Return the editor called so, with these hyperparameters.

    Raises:
        ConfigError: there is none, or a hyperparameter is not what it takes.
    """
    from tuner.editors import find_editor

    try:
        return find_editor(name).model_validate(values)
    except ValidationError as error:
        problems = [describe_problem(problem) for problem in error.errors(include_url=False)]
        raise ConfigError(
            "\n".join(f"{name}: {problem}" for problem in problems)
            + f"\nFields: {', '.join(find_editor(name).model_fields)}."
        ) from None


def read_tokens(given: list[str] | None) -> "dict[TextPart, int]":
    """Return how many tokens each part of the general text has, where an option says so.

    Raises:
        ConfigError: a part is unknown, or a number is not one.
    """
    from tuner.editing.corpus import TextPart

    tokens: dict[TextPart, int] = {}
    for part in given or []:
        name, mark, number = part.partition("=")
        digits = number.replace("_", "").replace(",", "")
        if not mark or not digits.isdecimal() or int(digits) < 1:
            raise ConfigError(
                f"--general-tokens needs part=number, such as search=50000, but got "
                f"{show_value(part)}."
            )
        tokens[read_member(TextPart, name.strip(), "part of general text")] = int(digits)
    return tokens


def read_budget(
    epsilons: list[float] | None, *, two_sided: bool = False, divergence: float | None = None
) -> "Budget":
    """Return these budgets, or the usual ones, with what they limit beside the rise of the loss.

    Raises:
        ConfigError: one is out of range.
    """
    from tuner.evaluation.deviation.budget import Budget

    try:
        given = tuple(epsilons) if epsilons else Budget().epsilons
        return Budget(epsilons=given, two_sided=two_sided, divergence=divergence)
    except ValidationError as error:
        problems = [describe_problem(problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(problems)) from None


def read_member(kind: type[_Member], value: str, what: str) -> _Member:
    """Return the member of `kind` that is written so.

    Raises:
        ConfigError: there is none.
    """
    known = [str(member) for member in kind]
    if value not in known:
        raise unknown_name(what, value, known)
    return kind(value)


def read_model(id: str, dtype: str, device: str, revision: str | None = None) -> "LanguageModel":
    """Return the model called so.

    Raises:
        ConfigError: it cannot be loaded, or there is no such precision.
    """
    from tuner.editing.model import Dtype, load_model

    if dtype not in get_args(Dtype):
        raise unknown_name("dtype", dtype, get_args(Dtype))
    return load_model(id, revision=revision, dtype=cast(Dtype, dtype), device=device)
