"""What a model's name stands for: a built-in model, a local folder, or one on the hub."""

import os
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from tuner.editing.providers import is_provided, provider_of
from tuner.errors import ConfigError, unknown_name
from tuner.files.paths import absolute, is_spelled_as_path


def locate(id: str, revision: str | None) -> tuple[str, str | None]:
    """Return the folder or hub id, and the revision, that a model's name stands for.

    Raises:
        ConfigError: there is no such built-in model, or no such folder.
    """
    resolved = resolved_model(id)
    provider = provider_of(id)
    if provider is not None:
        name, models = id.partition(":")[2], provider.models()
        if name not in models:
            raise unknown_name("built-in model", name, models)
        return str(models[name]), None
    if Path(resolved).is_absolute() and not os.path.isdir(resolved):
        what = "is not a folder" if os.path.exists(resolved) else "does not exist"
        there = "" if id == resolved else f" ({resolved})"
        raise ConfigError(f"The model folder {id!r}{there} {what}.")
    return resolved, revision


def resolved_model(id: str, start: Path | None = None) -> str:
    """Return the absolute path of a model's folder, from `start` or else the working directory.

    A path begins with `.`, `~` or `/`, has more than one separator, or exists; nothing else is a
    hub id. Names of built-in models and hub ids are returned as they are.

    Raises:
        ConfigError: what is a hub id from `start` would be read from the working directory.
    """
    if is_provided(id):
        return id
    if is_spelled_as_path(id) or os.path.exists(absolute(id, start)):
        return str(absolute(id, start))
    if start is not None and os.path.exists(absolute(id)):
        # transformers prefers a folder of the working directory to the hub.
        raise ConfigError(
            f"{id!r} is a hub id, since {absolute(id, start)} does not exist; but {absolute(id)} "
            "does, and would be loaded in its place. Give that path if you mean it, or else start "
            "from another folder."
        )
    return id


def called(id: str, source: str) -> str:
    """Return the name under which a model that was loaded from `source` is found from anywhere."""
    return id if is_provided(id) else source


def _located(id: str) -> str:
    return resolved_model(id)


_LOCATED = AfterValidator(_located)
ModelName: TypeAlias = Annotated[str, _LOCATED]
"""A model as an editor's hyperparameter; a folder's path is absolute there."""


def is_model_name(field: FieldInfo) -> bool:
    """Return whether a hyperparameter is a `ModelName`."""
    return _LOCATED in field.metadata
