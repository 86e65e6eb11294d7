"""What is wrong with a study's description, found without running anything."""

import os
from pathlib import Path

from pydantic import ValidationError

from tuner.editing.companions import Companions
from tuner.editing.corpus import FileDocuments
from tuner.editing.model import load_model
from tuner.editing.model_names import locate
from tuner.editing.task import Task
from tuner.editing.task_folder import load_task, resolved_task
from tuner.errors import TunerError
from tuner.evaluation.constraints import check_measured
from tuner.files.yaml_file import line_of, read_yaml
from tuner.search.config import StudyConfig, load_study
from tuner.search.space import Space
from tuner.search.space_file import load_space, resolved_space


def check_study(path: Path) -> list[str]:
    """Return every problem of a study, its space, its task and its text, each with its place."""
    problems: list[str] = []
    try:
        node, content = read_yaml(path)
    except TunerError as error:
        return [str(error)]
    try:
        config: StudyConfig | None = load_study(path)
    except TunerError as error:
        problems += str(error).splitlines()
        config = None
    if not isinstance(content, dict):
        return problems
    named = _named(config, content, path.parent)
    loaded: dict[str, Space | Task] = {}
    for key, load in (("space", load_space), ("task", load_task)):
        value = named.get(key)
        if value is None:
            continue
        try:
            loaded[key] = load(value)
        except (TunerError, ValidationError) as error:
            # A complaint about the file itself has its own place; one about the name has ours.
            for line in str(error).splitlines():
                located = ".yaml:" in line or ".jsonl:" in line
                prefix = "" if located else f"{path}:{line_of(node, (key,))}: "
                problems.append(f"{prefix}{line}")
    space, task = loaded.get("space"), loaded.get("task")
    if isinstance(space, Space) and isinstance(task, Task):
        try:
            space.check_task(task)
        except TunerError as error:
            problems.append(f"{path}:{line_of(node, ('space',))}: {error}")
    if config is not None and isinstance(space, Space) and config.model.startswith("builtin:"):
        # Other models may be large, or far away: a search refuses them on its first worker.
        try:
            model = load_model(config.model, device="cpu")
            space.check_model(model, Companions(device="cpu"))
        except TunerError as error:
            problems.append(f"{path}:{line_of(node, ('space',))}: {error}")
    if config is not None and isinstance(task, Task):
        for key, wanted in (
            ("constraints", (*task.constraints, *config.constraints)),
            ("metrics", config.metrics),
        ):
            try:
                check_measured(wanted, task)
            except TunerError as error:
                problems.append(f"{path}:{line_of(node, (key,))}: {error}")
    if config is not None:
        try:
            locate(config.model, config.revision)
        except TunerError as error:
            problems.append(f"{path}:{line_of(node, ('model',))}: {error}")
        if config.general is not None and os.path.isabs(config.general):
            try:
                FileDocuments(Path(config.general)).check()
            except TunerError as error:
                problems.append(f"{path}:{line_of(node, ('general',))}: {error}")
    return problems


def _named(config: StudyConfig | None, content: dict[str, object], folder: Path) -> dict[str, str]:
    """Return the space and the task, also of a study that is not valid otherwise."""
    if config is not None:
        return {"space": config.space, "task": config.task}
    given = {"space": resolved_space, "task": resolved_task}
    return {
        key: resolved(value, folder)
        for key, resolved in given.items()
        if isinstance(value := content.get(key), str)
    }
