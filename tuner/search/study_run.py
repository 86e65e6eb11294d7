"""One run of a study by one process: search, confirm on fresh text, retrain on test."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar, final

from pydantic import BaseModel

from tuner.bundle.bundle import StoredBundle
from tuner.editing.constraint import strictest
from tuner.editing.task import Task
from tuner.errors import DiskError, StudyFailed
from tuner.evaluation.deviation.budget import Certificate, epsilon_name
from tuner.evaluation.scores import Scores
from tuner.files.atomic_file import write_text
from tuner.search.config import StudyConfig
from tuner.search.observers import ObserverMaker, Observers
from tuner.search.outside import outside_modules
from tuner.search.progress import Progress, StudyPhase, snapshot
from tuner.search.proposer import Proposer
from tuner.search.ray.executor import Executor, executor, worker_failures_on
from tuner.search.ray.searcher import LedgerSearcher
from tuner.search.ray.worker import (
    Confirm,
    EvaluatorMaker,
    Job,
    Retest,
    WorkerSetup,
    retest_seeds,
)
from tuner.search.result import StudyResult, summary_of
from tuner.search.selection import (
    answer_of,
    corrected_confidence,
    next_candidate,
    rank,
    retest_gain,
    seeds_within_budget,
    seeds_within_constraints,
    select,
)
from tuner.search.space import Space
from tuner.search.storage.folder import StudyFolder, read_whole
from tuner.search.storage.ledger import Ledger, reasons
from tuner.trial.records import (
    Answer,
    SeedResult,
    StudyResultRecord,
    StudySummary,
    TrialEntry,
    TrialState,
    Winner,
)

_TICK_S = 0.5
_KEEP_S = 10.0
"""How often it is made sure that nobody else drives the study, while nothing is written."""
R = TypeVar("R", bound=BaseModel)
ProgressListener = Callable[[Progress], None]


@final
class StudyRun:
    """One run of a study by one process, from the open ledger to the result."""

    def __init__(
        self,
        config: StudyConfig,
        space: Space,
        task: Task,
        folder: StudyFolder,
        ledger: Ledger,
        *,
        observers: Sequence[ObserverMaker],
        make_evaluator: EvaluatorMaker,
        on_progress: ProgressListener,
        started: float,
    ) -> None:
        self._config = config
        self._space = space
        self._task = task
        self._constraints = strictest((*task.constraints, *config.constraints))
        self._folder = folder
        self._ledger = ledger
        self._on_progress = on_progress
        self._started = started
        self._observers = Observers(observers)
        self._phase = StudyPhase.STARTING
        self._phase_started = started
        self._last_tick = 0.0
        self._last_kept = started
        self._last_end = started
        self._jobs = (0, 0)
        self._done_before = sum(entry.state.finished for entry in ledger.trials())
        self._exits = ExitStack()
        self._ray: Executor | None = None
        self._setup = WorkerSetup(
            config=config.model_copy(update={"storage": None}),
            space=self._space,
            uid=ledger.uid,
            root=self._folder.root,
            make_evaluator=make_evaluator,
        )
        self._proposer = Proposer(
            self._space,
            self._config.sampler,
            seed=self._config.seed,
            per_editor=self._config.per_editor,
        )

    def __enter__(self) -> "StudyRun":
        self._exits.callback(self._observers.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def result(self) -> StudyResult:
        """Return what came out, once all of it is done."""
        self._emit()
        self._search()
        entries = self._ledger.trials()
        if not entries:
            raise StudyFailed(
                f"No trial of {self._config.name!r} was started within the time limit; "
                "give it more."
            )
        if all(entry.state is TrialState.FAILED for entry in entries):
            raise StudyFailed(
                f"All {len(entries)} trials of {self._config.name!r} failed:\n  "
                + "\n  ".join(reasons(entries))
            )
        chosen = self._confirm(entries)
        winners = self._retest(chosen)
        self._ledger.renew_lease()
        record = StudyResultRecord(summary=self._summary(), winners=winners, entries=tuple(entries))
        write_text(self._folder.result, record.model_dump_json())
        self._observers.study_finished(record)
        self._enter(StudyPhase.FINISHED)
        return StudyResult(record, finished=True)

    # The search

    def _search(self) -> None:
        searcher = LedgerSearcher(
            self._ledger,
            self._space,
            self._config,
            self._proposer,
            constraints=[constraint.name for constraint in self._constraints],
            deaths=worker_failures_on(self._config.address),
            on_change=self._changed,
        )
        self._prune()
        if len(self._ledger.history()) < self._config.trials or self._ledger.running():
            ray = self._executor()
            self._enter(StudyPhase.SEARCH)
            ray.search(searcher, self._setup, self._tick)
        self._watch()

    def _changed(self, number: int) -> None:
        entry = self._ledger.trial(number)
        if entry.state.finished:
            self._last_end = time.monotonic()
        self._observers.trial_changed(entry)
        self._prune()
        self._emit()

    def _prune(self) -> None:
        """Remove the bundles that can no longer be among the best; deltas may be large."""
        entries = self._ledger.trials()
        kept = {
            (epsilon, entry.number)
            for epsilon in self._config.budget.epsilons
            for entry in rank(entries, self._config.rule, epsilon)[: self._config.confirm_top]
        }
        for entry in entries:
            for epsilon, folder in entry.bundles:
                if (epsilon, entry.number) not in kept:
                    shutil.rmtree(folder, ignore_errors=True)

    # After the search

    def _confirm(
        self, entries: Sequence[TrialEntry]
    ) -> dict[float, tuple[TrialEntry, Certificate]]:
        """Return per budget the selected trial, with what fresh text says about it."""
        rule, top = self._config.rule, self._config.confirm_top
        candidates = {
            epsilon: [
                entry
                for entry in rank(entries, rule, epsilon)[:top]
                if self._folder.bundle(entry.number, epsilon).is_dir()
            ]
            for epsilon in self._config.budget.epsilons
        }
        # One candidate per budget at a time, the best first: mostly it holds, and the others need
        # not be read. The confidence allows for all of them from the start.
        certificates: dict[float, dict[int, Certificate]] = {epsilon: {} for epsilon in candidates}
        while jobs := [
            Confirm(epsilon, candidate.number, self._confidence(epsilon, ranked))
            for epsilon, ranked in candidates.items()
            if (candidate := next_candidate(ranked, certificates[epsilon])) is not None
        ]:
            self._perform(StudyPhase.CONFIRM, [job for job in jobs if not self._is_done(job)])
            for job in jobs:
                path = self._folder.confirmation(job.epsilon, job.number)
                certificates[job.epsilon][job.number] = _made(path, Certificate)
        chosen = {}
        for epsilon, ranked in candidates.items():
            entry = select(ranked, certificates[epsilon])
            if entry is not None:
                chosen[epsilon] = (entry, certificates[epsilon][entry.number])
        return chosen

    def _confidence(self, epsilon: float, candidates: Sequence[TrialEntry]) -> float:
        """Return how sure each certificate for a budget must be."""
        # Candidates of an earlier run of this study were looks at the same text.
        tried = self._folder.confirmed(epsilon) | {entry.number for entry in candidates}
        return corrected_confidence(self._config.budget.confidence, len(tried))

    def _retest(self, chosen: dict[float, tuple[TrialEntry, Certificate]]) -> tuple[Winner, ...]:
        """Return the winners, each retrained on the test split with every seed."""
        seeds = retest_seeds(self._config)
        answers = {epsilon: self._answer(entry, epsilon) for epsilon, (entry, _) in chosen.items()}
        jobs: list[Job] = [
            # How strong an edit may be for the further constraints was found on validation rows;
            # those of the test split must not decide it.
            Retest(
                epsilon,
                entry.number,
                answers[epsilon].epoch or 1,
                seed,
                most=answers[epsilon].alpha if self._constraints else 1.0,
            )
            for epsilon, (entry, _) in chosen.items()
            for seed in seeds
        ]
        self._perform(StudyPhase.RETEST, [job for job in jobs if not self._is_done(job)])
        return tuple(
            self._winner(epsilon, entry, certificate)
            for epsilon, (entry, certificate) in chosen.items()
        )

    def _winner(self, epsilon: float, entry: TrialEntry, certificate: Certificate) -> Winner:
        bundle = StoredBundle.load(self._folder.bundle(entry.number, epsilon))
        manifest = bundle.manifest.model_copy(update={"certificate": certificate})
        folder = self._folder.winner(epsilon)
        dataclasses.replace(bundle, manifest=manifest).save(folder)
        tested = tuple(
            _made(self._folder.retest(epsilon, entry.number, seed), SeedResult)
            for seed in retest_seeds(self._config)
        )
        base = self._test_base()
        judged = self._task.test.limited(self._task.simultaneous_edits)
        gain = (
            retest_gain(tested, base, judged.ood, confidence=self._config.budget.confidence)
            if base is not None
            else None
        )
        record = entry.record
        if record is None:
            raise StudyFailed(f"The record of trial {entry.number} has vanished from the disk.")
        return Winner(
            epsilon=epsilon,
            rule=self._config.rule,
            trial=entry.number,
            editor=record.editor,
            hyperparameters=record.hyperparameters,
            validation=self._answer(entry, epsilon),
            certificate=certificate,
            test=tested,
            test_gain=gain[0] if gain else None,
            test_gain_interval=gain[1] if gain else None,
            seeds_within_budget=seeds_within_budget(tested) if tested else None,
            seeds_within_constraints=(
                seeds_within_constraints(tested) if tested and self._constraints else None
            ),
        )

    def _test_base(self) -> Scores | None:
        return read_whole(self._folder.test_base, Scores)

    def _answer(self, entry: TrialEntry, epsilon: float) -> Answer:
        answer = answer_of(entry, self._config.rule, epsilon)
        if answer is None:
            raise StudyFailed(f"Trial {entry.number} keeps no edit within {epsilon_name(epsilon)}.")
        return answer

    def _is_done(self, job: Job) -> bool:
        match job:
            case Confirm():
                path = self._folder.confirmation(job.epsilon, job.number)
                known = read_whole(path, Certificate)
                return known is not None and known.deviation.confidence >= job.confidence
            case Retest():
                path = self._folder.retest(job.epsilon, job.number, job.seed)
                return self._test_base() is not None and read_whole(path, SeedResult) is not None

    def _perform(self, phase: StudyPhase, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        ray = self._executor()
        self._jobs = (0, len(jobs))
        self._enter(phase)

        def done() -> None:
            self._jobs = (self._jobs[0] + 1, self._jobs[1])
            self._last_end = time.monotonic()
            self._emit()

        ray.perform(jobs, self._setup, on_done=done, on_tick=self._tick)

    def _executor(self) -> Executor:
        if self._ray is None:
            self._ray = self._exits.enter_context(
                executor(self._config, outside_modules(self._config, self._space))
            )
        return self._ray

    # What others see

    def _summary(self) -> StudySummary:
        return summary_of(self._ledger, self._folder)

    def _enter(self, phase: StudyPhase) -> None:
        self._phase, self._phase_started = phase, time.monotonic()
        self._emit()

    def _tick(self) -> None:
        self._watch()
        if time.monotonic() - self._last_kept >= _KEEP_S:
            self._ledger.renew_lease()
            self._last_kept = time.monotonic()
        if time.monotonic() - self._last_tick >= _TICK_S:
            self._emit()

    def _emit(self) -> None:
        now = self._last_tick = time.monotonic()
        progress = snapshot(
            self._ledger.trials(),
            self._config,
            self._phase,
            elapsed_s=now - self._started,
            done_before=self._done_before,
            jobs=self._jobs,
            phase_s=now - self._phase_started,
            idle_s=now - max(self._last_end, self._phase_started),
        )
        self._on_progress(progress)

    def _watch(self) -> None:
        """Call the observers in as soon as they can be told which base model the study edits."""
        if self._observers.waiting and self._folder.base_fingerprint() is not None:
            self._observers.begin(self._summary(), self._ledger.trials())


def _made(path: Path, into: type[R]) -> R:
    """Return what a worker has just written."""
    content = read_whole(path, into)
    if content is None:
        raise DiskError(f"{path} is not whole. Run the same command again: it is made anew.")
    return content
