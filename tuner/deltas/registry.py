"""The kinds of deltas, by the name under which a bundle keeps them; outsiders add their own.

Ours are named in the table below, or live as `memory.py` or `delta.py` in the folder of the method
whose kind they are (`tuner/editors/grace/memory.py` is the kind `grace`). An installed package
offers its kinds under the entry-point group `tuner.deltas`. Any other kind is known as
`package.module:Class`.

A bundle is a stranger's file: that it names a kind must not make us import, and so run, whatever
module it names. Of the kinds of outsiders, a bundle may only name those that the user has brought
in: an installed package offers it, or its module is imported already, because the user named an
editor of it (`--editor mine:Bias`), imported it in Python, or said `allow_kind` (`--allow-kind`).
"""

from pathlib import Path

from tuner.editing.delta import Delta
from tuner.errors import ConfigError, UnknownKind
from tuner.registry import Registry
from tuner.validation import show_value

_EDITORS = "tuner.editors"
_GENERAL = {
    "weights": "tuner.editing.delta",
    "senses": "tuner.deltas.senses",
    "ensemble": "tuner.deltas.ensemble.ensemble_delta",
}


def _modules() -> dict[str, str]:
    editors = Path(__file__).parents[1] / "editors"
    of_methods = {
        path.parent.name: f"{_EDITORS}.{path.parent.name}.{path.stem}"
        for file in ("memory.py", "delta.py")
        for path in editors.glob(f"[!_]*/{file}")
    }
    return _GENERAL | of_methods


KINDS = Registry(
    noun="delta kind",
    group="tuner.deltas",
    # mypy: an abstract base is what is meant.
    base=Delta,  # type: ignore[type-abstract]
    modules=_modules,
)


def kind_of(delta: Delta) -> str:
    """Return the kind of a delta, as bundles name it: ours, a package's, or `module:Class`."""
    return KINDS.name_of(type(delta))


def find_kind(name: str) -> type[Delta]:
    """Return the class of a kind that a bundle names; no module is imported at its word alone.

    Raises:
        UnknownKind: there is no such kind, or its module is not one that the user brought in.
    """
    try:
        kind = KINDS.find_trusted(name)
    except ConfigError as error:
        raise UnknownKind(str(error)) from None
    if kind is None:
        raise UnknownKind(
            f"The delta kind {show_value(name)} is not part of tuner, no installed package "
            f"offers it under the entry points {KINDS.group!r}, and its module has not been "
            "imported here. A bundle alone does not make tuner run code. If you trust that "
            "module, say --allow-kind with its name, or in Python "
            "tuner.deltas.registry.allow_kind(...)."
        )
    return kind


def allow_kind(name: str) -> type[Delta]:
    """Import an outsider's kind `package.module:Class`, so that bundles may name it; return it.

    Raises:
        ConfigError: it cannot be imported, or is not a kind of delta.
    """
    return KINDS.find(name)


def check_storable(delta: object) -> Delta:
    """Return a delta that a bundle can keep: its class is found by the name of its kind.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(delta, Delta):
        raise ConfigError(
            f"An editor must yield deltas that subclass tuner.Delta, but {type(delta).__module__}:"
            f"{type(delta).__qualname__} does not."
        )
    name = kind_of(delta)
    try:
        is_found = find_kind(name) is type(delta)
    except UnknownKind:
        is_found = False
    if not is_found:
        raise ConfigError(
            f"The delta kind {name!r} is not found under that name, so no bundle could hold "
            "it. Define the class at the top level of an importable module."
        )
    return delta
