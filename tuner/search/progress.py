"""A study at one moment, for display."""

from collections.abc import Sequence
from enum import StrEnum
from typing import final

from pydantic import BaseModel, ConfigDict, Field

from tuner.evaluation.deviation.budget import Deviation
from tuner.search.config import StudyConfig
from tuner.search.selection import answer_of, rank
from tuner.trial.records import Rule, TrialEntry, TrialState


class StudyPhase(StrEnum):
    """What a study does now."""

    STARTING = "starting"
    SEARCH = "search"  # trials on the validation split
    CONFIRM = "confirm"  # the best trials, judged on fresh text
    RETEST = "retest"  # the winners, retrained on the test split
    FINISHED = "finished"


class _Snapshot(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class Incumbent(_Snapshot):
    """The best edit so far for one budget."""

    epsilon: float
    trial: int
    success: float
    gain: float
    deviation: Deviation


@final
class Progress(_Snapshot):
    """A study at one moment."""

    phase: StudyPhase
    total: int = Field(description="Trials that were asked for.")
    done: int = Field(description="Trials that have ended, failed ones included.")
    running: int
    failed: int
    pruned: int = Field(default=0, description="Trials that the scheduler ended.")
    over_budget: int = Field(
        description="Trials without an edit that keeps the steering budget and all constraints."
    )
    incumbents: tuple[Incumbent, ...]
    jobs_done: int = Field(default=0, description="In the phases after the search.")
    jobs_total: int = 0
    elapsed_s: float
    eta_s: float | None = Field(default=None, description="Until the end of this phase.")


def snapshot(
    entries: Sequence[TrialEntry],
    config: StudyConfig,
    phase: StudyPhase,
    *,
    elapsed_s: float,
    done_before: int = 0,
    jobs: tuple[int, int] = (0, 0),
    phase_s: float = 0.0,
    idle_s: float = 0.0,
) -> Progress:
    """Return the progress that these entries show.

    `done_before` trials had ended before this process began, and say nothing about its speed;
    `phase_s` is for how long the present phase has lasted, `idle_s` how much of it since anything
    in it ended.
    """
    ended = [entry for entry in entries if entry.state.finished]
    failed = sum(entry.state is TrialState.FAILED for entry in ended)
    within = sum(
        answer_of(entry, config.rule, config.target_epsilon) is not None for entry in ended
    )
    finished, wanted = jobs
    if phase is StudyPhase.SEARCH:
        finished, wanted = len(ended) - done_before, config.trials - done_before
    eta_s = None
    if finished > 0:
        # At the speed so far, counted up to the last end: between ends it only runs down.
        each_s = (phase_s - idle_s) / finished
        eta_s = max(0.0, each_s * (wanted - finished) - idle_s)
    return Progress(
        phase=phase,
        total=config.trials,
        done=len(ended),
        running=sum(entry.state is TrialState.RUNNING for entry in entries),
        failed=failed,
        pruned=sum(entry.state is TrialState.PRUNED for entry in ended),
        over_budget=len(ended) - failed - within,
        incumbents=tuple(_incumbents(ended, config.rule, config.budget.epsilons)),
        jobs_done=jobs[0],
        jobs_total=jobs[1],
        elapsed_s=elapsed_s,
        eta_s=eta_s,
    )


def _incumbents(
    entries: Sequence[TrialEntry], rule: Rule, epsilons: Sequence[float]
) -> list[Incumbent]:
    incumbents = []
    for epsilon in epsilons:
        ranked = rank(entries, rule, epsilon)
        answer = answer_of(ranked[0], rule, epsilon) if ranked else None
        if answer is not None:
            incumbents.append(
                Incumbent(
                    epsilon=epsilon,
                    trial=ranked[0].number,
                    success=answer.success,
                    gain=answer.gain,
                    deviation=answer.deviation,
                )
            )
    return incumbents
