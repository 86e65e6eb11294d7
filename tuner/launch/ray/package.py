"""A study and the small files that it needs become what a Ray job is made of."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tuner.editing.task_folder import load_task
from tuner.errors import ConfigError
from tuner.files.yaml_file import dump_yaml
from tuner.launch.checks import (
    check_leaves_place_open,
    check_space,
    check_travels_alone,
)
from tuner.launch.names import legal_name
from tuner.launch.ray.attempts import CONTENT_KEY, STUDY_KEY, attempt_id, first_command
from tuner.search import StudyConfig, load_space
from tuner.search.outside import outside_modules

_STUDY_FILE = "study.yaml"
_MOST_BYTES = 64 * 2**20
_LEDGER = (
    "everybody who sees the cluster would read it there; set TUNER_STORAGE in the environment of "
    "the cluster's head"
)


@final
@dataclass(frozen=True)
class RayPackage:
    """What is sent for one study: its files, by their place beside the study's own."""

    name: str
    study: StudyConfig
    files: Mapping[str, Path]

    @property
    def content(self) -> str:
        """A mark that two packages share only where they are the same."""
        marks = {
            place: hashlib.sha256(path.read_bytes()).hexdigest()
            for place, path in self.files.items()
        }
        text = json.dumps([_plain(self.study), marks], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def metadata(self) -> dict[str, str]:
        """What is written on each job of the study."""
        return {STUDY_KEY: self.study.name, CONTENT_KEY: self.content}

    @property
    def entrypoint(self) -> str:
        """The command that runs the study; it holds no secret."""
        return first_command(self.name)

    def preview(self) -> dict[str, Any]:
        """Return what is sent as plain values."""
        return {
            "submission_id": attempt_id(self.name, 1),
            "entrypoint": self.entrypoint,
            "metadata": self.metadata,
            "study": _plain(self.study),
            "files": [_STUDY_FILE, *self.files],
        }

    def write(self, folder: Path, study: StudyConfig) -> None:
        """Write the files, with a study that says how many trials the cluster has room for."""
        for place, path in self.files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / place)
        content = dump_yaml(_plain(study))
        (folder / _STUDY_FILE).write_text(content, encoding="utf-8")


def pack(study: StudyConfig) -> RayPackage:
    """Return what runs a study on a Ray cluster; equal studies give equal packages.

    What lies on this machine travels: a space's file, a task's folder, a file of general text, and
    the modules of classes that it names, unless they are installed. An
    absolute path that is not here is taken for one of the cluster.

    Raises:
        ConfigError: the study names something that does not travel, or its space does not fit.
        TaskError: its task is malformed.
    """
    check_leaves_place_open(study, _LEDGER)
    if os.path.isabs(study.model) and not os.path.isabs(study.spelled("model")):
        raise ConfigError(
            f"model: {study.spelled('model')} must be a name, or an absolute path on the cluster: "
            "a model is too large to travel with a study. Copy it to a disk that all nodes see."
        )
    if not os.path.isabs(study.task):
        load_task(study.task, study.edits)
    files: dict[str, Path] = {}
    moved: dict[str, Any] = {"address": "auto"}
    for key in ("space", "task", "general"):
        value = getattr(study, key)
        if value is None or not os.path.isabs(value):
            continue
        path = Path(value)
        if not path.exists():
            if os.path.isabs(study.spelled(key)):
                continue
            raise ConfigError(
                f"{key}: {study.spelled(key)} is not here ({value}), and so it cannot travel."
            )
        if key == "space":
            check_travels_alone(path)
        place = f"{key}/{path.name}"
        files |= {f"{place}{rest}": file for rest, file in _files_of(path)}
        moved[key] = f"./{place}"
    if not os.path.isabs(study.space) or os.path.exists(study.space):
        check_space(study)
        for module in outside_modules(study, load_space(study.space)):
            files |= {f"{module.name}{rest}": file for rest, file in _files_of(module)}
    size = sum(path.stat().st_size for path in files.values())
    if size > _MOST_BYTES:
        raise ConfigError(
            f"A study's files must have at most {_MOST_BYTES >> 20} MiB to travel with it, but "
            f"have {size >> 20}. Put them on a disk that all nodes see, and give absolute paths."
        )
    name = legal_name(study.name)
    return RayPackage(name, study.model_copy(update=moved), dict(sorted(files.items())))


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield a file, or all files of a folder, each with its path below that."""
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if file.is_file() and not hidden:
            yield f"/{file.relative_to(path).as_posix()}", file


def _plain(study: StudyConfig) -> dict[str, Any]:
    return study.model_dump(mode="json", exclude_none=True)
