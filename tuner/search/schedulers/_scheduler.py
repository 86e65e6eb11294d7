"""The interface of schedulers: what they see after each epoch of a trial, and their answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from pydantic import BaseModel, ConfigDict, Field

from tuner.trial.records import TrialState


@final
class Curve(BaseModel):
    """How a trial has gone so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0)
    values: tuple[float, ...] = Field(
        description="After each epoch, from the first: success on the validation split. Under the "
        "rules `best` and `published`, where the edit breaks the steering budget or a constraint, "
        "minus how far it is beyond it. Higher is better."
    )
    epochs: int = Field(gt=0, description="Most epochs that the trial may take.")
    state: TrialState = TrialState.RUNNING


class Scheduler(ABC):
    """Ends trials that promise little, after one of their epochs.

    A subclass is known by its file's name here, by an entry point of the group `tuner.schedulers`,
    or as `package.module:Class`. It is made without arguments in the worker of a trial, and must
    keep nothing between its answers: what it may know lies in the study's folder, so that a study
    that was killed goes on as if it had not been.
    """

    @abstractmethod
    def prunes(self, trial: Curve, others: Sequence[Curve]) -> bool:
        """Return whether a trial ends here. Asked after each of its epochs but the last.

        A pruned trial is a result: the edits of its epochs so far are fitted, judged and ranked as
        those of others. `others` are all trials of the study that have ended an epoch, by their
        numbers, also those that run at the same time or have been pruned.
        """
        ...
