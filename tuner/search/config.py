"""What a study is asked to do: one frozen, checked object, from YAML or from Python."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, final

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tuner.editing.constraint import Constraint, Constraints
from tuner.editing.corpus import TextPart, resolved_text
from tuner.editing.model import Dtype
from tuner.editing.model_names import resolved_model
from tuner.editing.task_folder import resolved_task
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Budget, epsilon_name
from tuner.evaluation.metrics import METRICS
from tuner.files.paths import absolute, legal_part
from tuner.files.yaml_file import line_of, read_yaml
from tuner.registry import Registry
from tuner.search.samplers import AUTO, SAMPLERS
from tuner.search.schedulers import NO_SCHEDULER, SCHEDULERS
from tuner.search.space_file import resolved_space
from tuner.search.storage.database import DEFAULT_PATIENCE_S
from tuner.search.storage.url import resolved_storage, storage_url
from tuner.search.trackers import MLFLOW, NO_TRACKING, TRACKERS
from tuner.trial.records import Rule
from tuner.validation import describe_problem, show_path

# What may change when a study is continued: how much is tried and on what it runs, never what a
# trial means.
_MAY_CHANGE = frozenset(
    {"trials", "workers", "gpus_per_worker", "max_failures", "time_limit_s", "test_seeds"}
    | {"storage", "address", "ledger_patience_s", "tracking"}
)

# With more at once, a model of the objective learns too late: measured on budgets up to 50.
_TRIALS_PER_WORKER = 8
_WORKERS_FOR_SMALL_STUDIES = 4


# What may be the path of something, and how it is made absolute.
_LOCATED: Mapping[str, Callable[[str, Path | None], str]] = {
    "model": resolved_model,
    "task": resolved_task,
    "general": resolved_text,
    "space": resolved_space,
}

_LEGAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_IN_NAME = 200


@final
@dataclass(frozen=True)
class Starts:
    """Where the relative paths of a study start: by default the working directory."""

    folder: Path | None = None
    flags: frozenset[str] = frozenset()
    """The fields that were given on the command line, and so start at the working directory."""


T = TypeVar("T")

AS_WRITTEN = object()
"""Validates a study that was read once already, whose paths must stay as they are."""


def _start_of(key: str, info: ValidationInfo) -> Path | None:
    starts = info.context
    return starts.folder if isinstance(starts, Starts) and key not in starts.flags else None


def _check_there(registry: Registry[T], name: str, key: str, info: ValidationInfo) -> None:
    """Verify that what a study names under a key can be imported, unless it is only shown."""
    if info.context is AS_WRITTEN:
        return
    try:
        registry.find(name, _start_of(key, info))
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _known_sampler(name: str, info: ValidationInfo) -> str:
    if name != AUTO:
        _check_there(SAMPLERS, name, "sampler", info)
    return name


def _known_scheduler(name: str, info: ValidationInfo) -> str:
    _check_there(SCHEDULERS, name, "scheduler", info)
    return name


def _known_metrics(names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    for name in names:
        _check_there(METRICS, name, "metrics", info)
        if names.count(name) > 1:
            raise ValueError(f"each metric may be named once, but {name} stands twice.")
    return names


def _imported_metrics(
    constraints: tuple[Constraint, ...], info: ValidationInfo
) -> tuple[Constraint, ...]:
    """Import the outsiders' metrics that a study names, and check the limits on them."""
    if info.context is AS_WRITTEN:
        return constraints
    for constraint in constraints:
        _check_there(METRICS, constraint.metric, "constraints", info)
    return tuple(Constraint.model_validate(constraint.model_dump()) for constraint in constraints)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _known_trackers(names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    if NO_TRACKING in names and len(names) > 1:
        raise ValueError(f"`{NO_TRACKING}` goes with nothing else, but got {', '.join(names)}.")
    for name in names:
        # None of ours is imported here: a worker needs no MLflow.
        if name not in (MLFLOW, NO_TRACKING):
            _check_there(TRACKERS, name, "tracking", info)
    return names


@final
class StudyConfig(BaseModel):
    """One search: a model, a task, a space, budgets, many trials."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    name: str = Field(
        default="", description="The study's name and folder; continues the study that bears it."
    )
    model: str = Field(default="builtin:neox", description="Built-in model, folder or hub id.")
    revision: str | None = Field(default=None, description="Revision of a hub model.")
    dtype: Dtype = "float32"
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda…"
    )
    task: str = Field(description="A task's name, or the path of its folder.")
    edits: int | None = Field(
        default=None, gt=0, description="Edits made at once; by default what the task says."
    )
    general: str | None = Field(
        default=None,
        description="File of general text, or a folder of files; the built-in models bring their "
        "own.",
    )
    general_tokens: dict[TextPart, Annotated[int, Field(gt=0)]] = Field(
        default={},
        exclude_if=lambda value: not value,
        description="Most tokens of each part of the general text: search, confirmation, "
        "auxiliary, gradient.",
    )
    block_length: int | None = Field(
        default=None,
        ge=2,
        exclude_if=lambda value: value is None,
        description="Tokens per block of general text; by default 512, or the model's context.",
    )
    space: str = Field(default="lora", description="A space's name, or the path of its file.")
    trials: int = Field(default=30, gt=0, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    workers: int | Literal["auto"] = Field(default="auto", description="Trials at a time.")
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="Part of a GPU that a worker takes; by default 1, if any."
    )
    address: str | None = Field(
        default=None, description="A Ray cluster to run on; by default this machine."
    )
    budget: Budget = Budget()
    constraints: Annotated[Constraints, AfterValidator(_imported_metrics)] = Field(
        default=(), description="What an edit must keep beside the budget and the task's own."
    )
    metrics: Annotated[
        tuple[str, ...], BeforeValidator(_listed), AfterValidator(_known_metrics)
    ] = Field(
        default=(),
        description="What is reported beside the usual figures, without a limit: a metric's name, "
        "package.module:Class, or a list.",
    )
    rule: Rule = Rule.FITTED
    epsilon: float | None = Field(
        default=None, description="The budget that steers the search; by default the loosest."
    )
    sampler: Annotated[str, AfterValidator(_known_sampler)] = Field(
        default=AUTO,
        description="How hyperparameters are proposed: auto, gp, tpe, random, or an outsider's "
        "package.module:Class.",
    )
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] = Field(
        default=NO_SCHEDULER,
        description="Which trials end before their last epoch: none, median, successive_halving, "
        "or an outsider's package.module:Class.",
    )
    per_editor: bool = Field(
        default=False,
        description="Give each editor of the space the same number of trials and its own sampler.",
    )
    tracking: Annotated[
        tuple[str, ...], BeforeValidator(_listed), AfterValidator(_known_trackers)
    ] = Field(
        default=(MLFLOW,),
        description="Who follows the search: mlflow, none, package.module:Class, or a list.",
    )
    confirm_top: int = Field(
        default=3, gt=0, description="Trials per budget that are judged on fresh text."
    )
    test_seeds: int = Field(
        default=3, ge=0, description="Seeds with which each winner is retrained on the test split."
    )
    storage: SecretStr | None = Field(
        default=None, description="URL of a database for the ledger; by default a file."
    )
    ledger_patience_s: float = Field(
        default=DEFAULT_PATIENCE_S,
        ge=0,
        description="How long the ledger's database may be away before the search gives up.",
    )
    max_failures: int = Field(
        default=2,
        ge=0,
        description="How often a trial is run again after its worker died; a lost node does not "
        "count.",
    )
    time_limit_s: float | None = Field(
        default=None, gt=0, description="No trial is started after this many seconds."
    )

    # What the user wrote where it is not what it means, by the field's name.
    _spelled: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named_after_task_and_space(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict) or values.get("name") or "task" not in values:
            return values
        parts = []
        for key in ("task", "space"):
            path = absolute(str(values.get(key, "lora")), _start_of(key, info))
            is_file = path.suffix in (".yaml", ".yml")
            parts.append(legal_part(path.stem if is_file else path.name or key))
        return {**values, "name": "-".join(parts)}

    @model_validator(mode="wrap")
    @classmethod
    def _with_spelling(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        config = handler(values)
        if isinstance(values, dict):
            config._spelled = {
                key: values[key]
                for key in _LOCATED
                if isinstance(values.get(key), str) and values[key] != getattr(config, key)
            }
        return config

    @field_validator(*_LOCATED, mode="before")
    @classmethod
    def _located(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str) or info.context is AS_WRITTEN:
            return value
        key = str(info.field_name)
        try:
            return _LOCATED[key](value, _start_of(key, info))
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("storage", mode="before")
    @classmethod
    def _stored(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str) or info.context is AS_WRITTEN:
            return value
        return resolved_storage(value, _start_of("storage", info))

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if name and (not _LEGAL_NAME.fullmatch(name) or len(name) > _MOST_IN_NAME):
            raise ValueError(
                "a study's name must begin with a letter or a digit, hold only letters from A to "
                f"Z, digits, `.`, `_` and `-`, and have at most {_MOST_IN_NAME} characters."
            )
        return name

    @field_validator("storage")
    @classmethod
    def _can_hold_a_ledger(cls, storage: SecretStr | None) -> SecretStr | None:
        if storage is not None:
            try:
                storage_url(storage)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return storage

    @model_validator(mode="after")
    def _steered_by_one_of_its_budgets(self) -> Self:
        if self.epsilon is not None and self.epsilon not in self.budget.epsilons:
            known = ", ".join(epsilon_name(epsilon) for epsilon in self.budget.epsilons)
            raise ValueError(f"`epsilon` must be one of the budgets ({known}).")
        return self

    @property
    def target_epsilon(self) -> float:
        """The budget that the sampler works for; by default the loosest.

        There every trial says something, while tight budgets leave most trials at the base model,
        which teaches nothing. Measured on a surrogate of 34 recorded LoRA trials (country_capital,
        25 trials, 6 seeds): mean best gain at 1e-3, 1e-4, 1e-5 is .63, .40, .38 steering by 1e-3,
        .54, .45, .33 by 1e-4, and .59, .38, .32 at random.
        """
        return self.epsilon if self.epsilon is not None else max(self.budget.epsilons)

    @property
    def gpus(self) -> float:
        """The part of a GPU that each worker takes."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if self.device != "cpu" and torch.cuda.is_available() else 0.0

    @property
    def worker_count(self) -> int:
        """How many trials run at a time."""
        if self.workers != "auto":
            asked = max(1, self.workers)
            # A worker without a place would block indefinitely. A cluster has its own GPUs.
            local = self.gpus > 0 and self.address is None
            places = int(torch.cuda.device_count() / self.gpus) if local else asked
            return min(asked, max(1, places))
        if self.gpus > 0:
            room = max(1, int(torch.cuda.device_count() / self.gpus))
        else:
            room = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return self.workers_within(room)

    def workers_within(self, room: int) -> int:
        """Return how many trials should run at a time where `room` of them have a place."""
        useful = max(_WORKERS_FOR_SMALL_STUDIES, self.trials // _TRIALS_PER_WORKER)
        asked = min(useful, self.trials) if self.workers == "auto" else max(1, self.workers)
        return min(room, asked)

    def spelled(self, key: str) -> str:
        """Return a field as the user wrote it, for a person to read."""
        return self._spelled.get(key, str(getattr(self, key)))

    @property
    def spelling(self) -> dict[str, str]:
        """What the user wrote for paths, by the field's name."""
        return dict(self._spelled)

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change while a study goes on, as plain JSON values without secrets."""
        asked = self.model_dump(mode="json", exclude=set(_MAY_CHANGE))
        if not self.constraints:
            del asked["constraints"]  # studies from before there were any have none
        if not self.metrics:
            del asked["metrics"]
        if self.edits is None:
            del asked["edits"]  # nor have they this
        if self.scheduler == NO_SCHEDULER:
            del asked["scheduler"]
        # Spelled out, so that a study survives a change of our default.
        return {**asked, "epsilon": self.target_epsilon}


def load_study(path: Path, flags: Mapping[str, Any] | None = None) -> StudyConfig:
    """Return the study that a YAML file describes; `flags` win over what it says.

    The file's relative paths start at its folder, and those of the flags at the working directory.

    Raises:
        ConfigError: the file is absent or breaks rules, or a flag does; all are reported, one
            `file:line` each.
    """
    node, content = read_yaml(path)
    flags = flags or {}
    if isinstance(content, dict):
        budget = content.get("budget")
        if isinstance(budget, dict) and "budget" in flags:
            flags = {**flags, "budget": {**budget, **flags["budget"]}}
        content = {**content, **flags}
    try:
        return StudyConfig.model_validate(content, context=Starts(path.parent, frozenset(flags)))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigError(
            "\n".join(
                describe_problem(problem)
                if problem["loc"][:1] and problem["loc"][0] in flags
                else f"{show_path(path)}:{line_of(node, problem['loc'])}: "
                f"{describe_problem(problem)}"
                for problem in problems
            )
        ) from None


def check_unchanged(before: dict[str, Any], now: dict[str, Any], name: str) -> None:
    """Refuse to continue a study as another one.

    Raises:
        ConfigError: the two differ; every differing key is named.
    """
    differing = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if differing:
        lines = [f"  {key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in differing]
        raise ConfigError(
            f"The study {name!r} exists and was asked for something else:\n"
            + "\n".join(lines)
            + "\nGive the new study another name, or ask for the same."
        )
