"""What must hold of a study wherever it is launched, as far as this machine can know."""

from pathlib import Path

from tuner.editing.task import load_task, task_names
from tuner.errors import ConfigError
from tuner.evaluation.constraints import check_measured
from tuner.search import StudyConfig, load_space
from tuner.yaml_file import read_yaml


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
    if study.task in task_names() or Path(study.task).is_dir():
        task = load_task(study.task, study.edits)
        space.check_task(task)
        check_measured((*task.constraints, *study.constraints), task)


def check_travels_alone(space: Path) -> None:
    """Refuse a file of a space that needs other files.

    Raises:
        ConfigError: an editor of it is a file, or it is no YAML.
    """
    _, content = read_yaml(space)
    if isinstance(content, dict) and any(map(is_path, content.get("editors") or ())):
        raise ConfigError(
            f"space: {space} must name its editors' spaces, not files: one file travels with a "
            "study. Put the files on a disk of the cluster."
        )


def is_path(name: object) -> bool:
    """Return whether a value means a file, and not the name of something that tuner has."""
    return isinstance(name, str) and (bool(Path(name).suffix) or len(Path(name).parts) > 1)
