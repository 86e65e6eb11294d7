"""The interface of metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from tuner.editing.model import LanguageModel
from tuner.editing.task import Split, SuccessCriterion


class Readings(Protocol):
    """What is read of the model as it stands, each part at most once and only if asked for.

    A part is None where the task has no rows for it.
    """

    model: LanguageModel
    split: Split

    @property
    def success(self) -> float:
        """The success of the OOD rows by the task's criterion."""
        ...

    @property
    def exact(self) -> float:
        """The share of OOD rows whose greedy, free-running generation is the target."""
        ...

    @property
    def canonical_success(self) -> float | None:
        """The success of the canonical rows; None for the criterion threshold."""
        ...

    @property
    def canonical_exact(self) -> float | None:
        """The share of canonical rows whose greedy, free-running generation is the target."""
        ...

    @property
    def neighbour_success(self) -> float | None:
        """The success of the neighbours; for the criterion tokens, their tokens' accuracy."""
        ...

    @property
    def neighbour_agreement(self) -> float | None:
        """The share of the neighbours' tokens predicted as by the base (criterion tokens)."""
        ...

    @property
    def hard_negative_loss(self) -> float | None:
        """The mean loss of the hard negatives' targets, in nats."""
        ...

    @property
    def related_loss(self) -> float | None:
        """The mean loss of the related text per token, in nats."""
        ...

    @property
    def free_text(self) -> Sequence[float | None]:
        """Fluency and consistency of sampled text; empty without generation prompts."""
        ...

    @property
    def drawdown(self) -> float | None:
        """How often predictions on hard negatives differ from the base model's."""
        ...


class Metric(ABC):
    """One number that says how a model does on a split of a task.

    A subclass is known by its file's name here, by an entry point of the group `tuner.metrics`, or
    as `package.module:Class`; so it is called in constraints, records and MLflow. It is made while
    the model is unedited, so that it may keep what the base model says, and asked with each edit
    applied. It must leave the model, and every global random state, as they are.
    """

    label: ClassVar[str]
    """Its name in tables."""
    lower_is_better: ClassVar[bool] = False
    """Whether limits on it are upper bounds."""
    group: ClassVar[str | None] = None
    """Metrics of a group share what they read, and are measured together."""
    costly: ClassVar[bool] = False
    """Whether it is left out of its group unless it is asked for."""

    # B027: most metrics have nothing to keep.
    def __init__(  # noqa: B027
        self, model: LanguageModel, split: Split, criterion: SuccessCriterion
    ) -> None:
        """Keep what is needed of the unedited model."""

    @classmethod
    @abstractmethod
    def is_measured_on(cls, split: Split, criterion: SuccessCriterion) -> bool:
        """Return whether a split has all that this metric needs."""
        ...

    @abstractmethod
    def measure(self, readings: Readings) -> float | None:
        """Return the value for the model as it stands; None where there is none.

        Raises:
            EditError: the edited model's predictions are NaN.
        """
        ...
