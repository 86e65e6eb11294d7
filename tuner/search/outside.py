"""The modules of a user's own classes, which must reach the workers of a study that names them."""

import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tuner.search.config import StudyConfig
from tuner.search.space import Space


def outside_modules(study: StudyConfig, space: Space) -> tuple[Path, ...]:
    """Return the files and package folders of what a study names as `package.module:Class`.

    Installed packages are left out: they are installed where the workers run, as tuner itself.
    """
    return tuple(path for name in _named(study, space) if (path := _loose(name)) is not None)


def _named(study: StudyConfig, space: Space) -> list[str]:
    """Return the first part of each module's name, each once."""
    return list(
        dict.fromkeys(name.partition(":")[0].split(".")[0] for name in _classes(study, space))
    )


def _classes(study: StudyConfig, space: Space) -> Iterator[str]:
    named = [study.sampler, study.scheduler, *study.metrics, *study.tracking]
    named += [constraint.metric for constraint in study.constraints]
    named += [branch.editor.name() for branch in space.branches]
    yield from (name for name in named if ":" in name)


def _loose(module: str) -> Path | None:
    """Return where a module lies that was imported from a folder; None for an installed one."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin).resolve()
    installed = {
        Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib")
    }
    if module == "tuner" or any(origin.is_relative_to(folder) for folder in installed):
        return None
    return origin.parent if spec.submodule_search_locations else origin
