"""What must hold of a study wherever it is launched, as far as this machine can know."""

import os
from pathlib import Path

from tuner.editing.task_folder import load_task, task_names
from tuner.errors import ConfigError
from tuner.evaluation.constraints import check_measured
from tuner.files.text_file import is_folder
from tuner.files.yaml_file import read_yaml
from tuner.search import StudyConfig, load_space
from tuner.search.outside import outside_modules
from tuner.search.space_file import resolved_space


def check_leaves_place_open(study: StudyConfig, ledger: str) -> None:
    """Refuse a study that says itself where it runs; `ledger` says where its ledger comes from.

    Raises:
        ConfigError: it names a ledger, which would travel in clear, or a Ray cluster.
    """
    for key, value, instead in (
        ("storage", study.storage, ledger),
        ("address", study.address, "the driver runs in the Ray cluster that it is sent to"),
    ):
        if value is not None:
            raise ConfigError(f"{key}: must not be set in a study to launch: {instead}.")


def check_space(study: StudyConfig) -> None:
    """Refuse what no trial could run.

    Raises:
        ConfigError: the space is not valid, or does not fit the task.
        TaskError: the task is malformed.
    """
    space = load_space(study.space)
    if study.task in task_names() or is_folder(Path(study.task)):
        task = load_task(study.task, study.edits)
        space.check_task(task)
        check_measured((*task.constraints, *study.constraints, *study.metrics), task)


def check_installed(study: StudyConfig, space: Path | str) -> None:
    """Refuse classes whose modules only lie in a folder here: only what an image holds is there.

    Raises:
        ConfigError: the study names such a class, or its space does.
    """
    modules = outside_modules(study, load_space(space))
    if modules:
        raise ConfigError(
            f"{modules[0].name}: its classes must be in the cluster's image, since only a study "
            "and its space travel to Kubernetes. Install it as a package, in an image on top of "
            "tuner's."
        )


def check_travels_alone(space: Path) -> None:
    """Refuse a file of a space that needs other files.

    Raises:
        ConfigError: an editor of it is a file, a model of it lies here, or it is not valid.
    """
    _, content = read_yaml(space)
    editors = content.get("editors") if isinstance(content, dict) else None
    if any(isinstance(one, str) and os.path.isabs(resolved_space(one)) for one in editors or ()):
        raise ConfigError(
            f"space: {space} must name its editors' spaces, not files: one file travels with a "
            "study. Put the files on a disk of the cluster."
        )
    text = space.read_text(encoding="utf-8")
    relative = [path for path in load_space(space).model_folders if path not in text]
    if relative:
        raise ConfigError(
            f"space: {space} must give models by a name, or by an absolute path on the cluster, "
            f"but gives a relative one ({relative[0]}): a model is too large to travel with a "
            "study. Copy it to a disk that all nodes see."
        )
