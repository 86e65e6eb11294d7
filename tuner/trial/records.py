"""What a trial leaves behind: plain, frozen, JSON-ready records.

The ledger, MLflow, the report and the CLI all read these and nothing else.
"""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, final

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.constraint import Constraint
from tuner.evaluation.deviation.budget import Certificate, Deviation, Verdict, epsilon_name
from tuner.evaluation.scores import Interval, Scores


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Judged(_Record):
    """A record of an edit that constraints may be about."""

    violations: dict[str, float] = Field(
        default_factory=dict,
        exclude_if=lambda violations: not violations,
        description="Per constraint beside the budget, by name, how far the edit is beyond it in "
        "units of the number that the constraint gives; at most 0 where it is kept.",
    )

    @property
    def keeps_constraints(self) -> bool:
        """Whether every constraint beside the budget is kept."""
        return all(violation <= 0 for violation in self.violations.values())


class Rule(StrEnum):
    """How the answer for a budget is chosen among the epochs of one trial."""

    # An epoch within the budget that breaks a further constraint does not count as within.
    PUBLISHED = "published"  # the last epoch within the budget, else the base model
    BEST = "best"  # the best epoch within the budget, else the base model
    FITTED = "fitted"  # the best epoch after scaling its delta to just keep the budget


class Phase(StrEnum):
    """The parts of a trial whose durations are reported."""

    LOAD = "load"
    EDIT = "edit"
    SUCCESS = "success"
    DEVIATION = "deviation"


class SplitName(StrEnum):
    """The two splits of a task: hyperparameters are chosen on one, reported on the other."""

    VAL = "val"
    TEST = "test"


@final
class Answer(_Judged):
    """What one trial offers for one budget under one rule.

    `epoch` is None where no epoch keeps the budget: the answer is then the base model itself.
    """

    rule: Rule
    epsilon: float
    epoch: int | None
    alpha: float = Field(ge=0, le=1, description="Factor on the delta; 0 is the base model.")
    scores: Scores
    gain: float = Field(description="Success minus the base model's success.")
    gain_interval: Interval | None = None
    deviation: Deviation
    verdict: Verdict

    @property
    def success(self) -> float:
        """The share of OOD rows that the edited model gets right."""
        return self.scores.success

    @property
    def feasible(self) -> bool:
        """Whether an edit, not the base model, keeps the budget and every further constraint."""
        within = self.epoch is not None and self.verdict is not Verdict.OVER
        return within and self.keeps_constraints


@final
class EpochRecord(_Judged):
    """The unscaled edit as it stood after one epoch."""

    epoch: int
    training_loss: float | None
    success: float
    deviation: Deviation


class Outcome(StrEnum):
    """How a trial ended."""

    COMPLETED = "completed"
    FAILED = "failed"


@final
class TrialRecord(_Record):
    """One editor with one set of hyperparameters, run once on one split."""

    outcome: Outcome
    failure: str | None = Field(default=None, description="Why the trial failed, in one line.")
    editor: str
    hyperparameters: dict[str, Any]
    split: SplitName
    seed: int
    base: Scores | None = None
    epochs: tuple[EpochRecord, ...] = ()
    answers: tuple[Answer, ...] = ()
    stopped_early: bool = Field(
        default=False, description="The edit was surely over every budget at every strength."
    )
    pruned: bool = Field(
        default=False,
        exclude_if=lambda pruned: not pruned,
        description="The study's scheduler ended it; its answers are those of its epochs so far.",
    )
    seconds: dict[Phase, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    def answer(self, epsilon: float, rule: Rule = Rule.FITTED) -> Answer:
        """Return the answer for a budget.

        Raises:
            KeyError: the trial was not run with this budget and rule, or failed.
        """
        for answer in self.answers:
            if answer.rule is rule and answer.epsilon == epsilon:
                return answer
        raise KeyError(f"no {rule} answer at epsilon={epsilon_name(epsilon)}")

    @classmethod
    def failed(
        cls, *, editor: str, hyperparameters: dict[str, Any], split: SplitName, seed: int, why: str
    ) -> Self:
        """Return the record of a trial that could not finish."""
        return cls(
            outcome=Outcome.FAILED,
            failure=why,
            editor=editor,
            hyperparameters=hyperparameters,
            split=split,
            seed=seed,
        )


@final
class SeedResult(_Record):
    """A winner's hyperparameters, retrained on the test split with one seed."""

    seed: int
    answer: Answer
    certificate: Certificate


@final
class Winner(_Record):
    """The selected edit for one budget, with everything that was confirmed about it."""

    epsilon: float
    rule: Rule
    trial: int = Field(description="Number of the trial in the study.")
    editor: str
    hyperparameters: dict[str, Any]
    validation: Answer
    certificate: Certificate
    test: tuple[SeedResult, ...] = ()
    test_gain: float | None = Field(default=None, description="Mean over the seeds.")
    test_gain_interval: Interval | None = None
    seeds_within_budget: int | None = None
    seeds_within_constraints: int | None = Field(
        default=None, description="None where there are no constraints beside the budget."
    )


class TrialState(StrEnum):
    """Where a trial stands in its study."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"  # ended by the scheduler; the edits of its epochs so far count
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Whether the trial will not change any more."""
        return self in (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)

    @property
    def has_answers(self) -> bool:
        """Whether the trial has ended and offers edits."""
        return self in (TrialState.COMPLETED, TrialState.PRUNED)


@final
class TrialEntry(_Record):
    """One line of the ledger: a trial as its study sees it, from the proposal to the record."""

    number: int = Field(ge=0)
    state: TrialState
    parameters: dict[str, Any] = Field(description="What the sampler proposed.")
    record: TrialRecord | None = Field(default=None, description="Absent until the trial ends.")
    started: datetime | None = None
    finished: datetime | None = None
    failure: str | None = Field(default=None, description="Why the trial failed, in one line.")
    bundles: tuple[tuple[float, Path], ...] = Field(
        default=(), description="The folders of the deltas kept on disk, each with its budget."
    )


@final
class StudySummary(_Record):
    """What a study was asked to do: all that its trials have in common."""

    name: str
    uid: str = Field(description="Made once with the study; unlike the name, never used again.")
    model: str
    model_fingerprint: str
    task: str
    task_hash: str
    space: str
    sampler: str
    scheduler: str = Field(default="none", exclude_if=lambda scheduler: scheduler == "none")
    rule: Rule
    target_epsilon: float
    epsilons: tuple[float, ...]
    constraints: tuple[Constraint, ...] = Field(
        default=(), description="What an edit must keep beside the budget."
    )
    metrics: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda metrics: not metrics,
        description="Metrics to report beside the usual ones, without a limit.",
    )
    seed: int
    trials: int = Field(gt=0, description="Completed trials that were asked for.")
    versions: dict[str, str] = Field(default_factory=dict)
    folder: Path = Field(description="Where the study's ledger, records and bundles lie.")


@final
class StudyResultRecord(_Record):
    """A study as it stands: what was asked, what every trial gave, what was selected."""

    summary: StudySummary
    winners: tuple[Winner, ...] = ()
    entries: tuple[TrialEntry, ...] = ()
