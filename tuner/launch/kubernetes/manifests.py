"""Manifests as text: strictly read and validated, written the same way each time."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from tuner.errors import ConfigError
from tuner.files.yaml_file import PlainDumper
from tuner.launch.kubernetes.rayjob import RayJob
from tuner.validation import describe_problem


def read_rayjob(content: Mapping[str, Any]) -> RayJob:
    """Return a RayJob from its plain values, as YAML or the API gives them.

    Raises:
        ConfigError: it is not as KubeRay's operator wants it; every broken rule is told.
    """
    try:
        return RayJob.model_validate(dict(content))
    except ValidationError as error:
        raise ConfigError(refusal("The RayJob", error)) from None


def refusal(what: str, error: ValidationError) -> str:
    """Return the broken rules of an object, one line each."""
    problems = (describe_problem(problem) for problem in error.errors(include_url=False))
    return f"{what} is not valid, and was not sent:\n" + "\n".join(f"  {one}" for one in problems)


def as_yaml(objects: Sequence[Mapping[str, Any]]) -> str:
    """Return objects as one YAML stream, in their own order of keys."""
    return yaml.dump_all(
        [_plain(one) for one in objects],
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=100,
        explicit_start=True,
    )


def _plain(value: Mapping[str, Any]) -> Any:
    # Equal parts of an object must not be written as references to each other.
    return json.loads(json.dumps(value))


class _Dumper(PlainDumper):
    """Writes text of several lines as it reads."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
