"""One trial: an editor with one set of hyperparameters, under the budget. Runs anywhere."""

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import torch

from tuner.deltas.registry import check_storable
from tuner.editing.corpus import GeneralText, load_general_text
from tuner.editing.delta import Delta
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel
from tuner.editing.task import Task
from tuner.errors import EditError
from tuner.evaluation.deviation.budget import Budget, Deviation
from tuner.evaluation.deviation.scaling import LEAST_ALPHA, StrengthSearch, strongest, surely_over
from tuner.evaluation.scores import Scores
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import (
    Answer,
    EpochRecord,
    Outcome,
    Phase,
    Rule,
    SplitName,
    TrialRecord,
)
from tuner.trial.result import TrialResult

EpochListener = Callable[[EpochRecord], None]

PruneRule = Callable[[EpochRecord], bool]
"""Returns whether a trial ends after an epoch that is not its last."""

_ALLOCATOR = "DefaultCPUAllocator: "
"""With it begins what torch says, as a plain RuntimeError, where a processor's memory runs out."""


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _ALLOCATOR in str(error)


@final
@dataclass
class _Candidate:
    """An edit that may become an answer."""

    epoch: int
    delta: Delta
    success: float
    strengths: StrengthSearch
    keeps_constraints: bool = True


@final
@dataclass
class _Candidates:
    """The best edits so far, per rule and budget. Holds few deltas, since they may be large."""

    chosen: dict[tuple[Rule, float], _Candidate] = field(default_factory=dict)

    def offer(self, rule: Rule, epsilon: float, candidate: _Candidate) -> None:
        """Keep `candidate` if the rule prefers it to what is kept."""
        kept = self.chosen.get((rule, epsilon))
        if rule is Rule.PUBLISHED or kept is None or candidate.success > kept.success:
            self.chosen[rule, epsilon] = candidate


@final
@dataclass
class _Trial:
    """The state of one call of `run_editor`."""

    evaluator: Evaluator
    editor: Editor
    seed: int
    split: SplitName
    pinned: int | None
    rules: tuple[Rule, ...]
    epsilons: tuple[float, ...]
    most: float
    on_epoch: EpochListener | None
    prunes: PruneRule | None = None
    epochs: list[EpochRecord] = field(default_factory=list)
    seconds: dict[Phase, float] = field(default_factory=dict)
    stopped_early: bool = False
    pruned: bool = False

    def run(self) -> TrialResult:
        base = self.evaluator.base_scores(self.split)
        candidates = self._retrained() if self.pinned is not None else self._searched()
        answers, deltas = self._answers(candidates, base)
        return TrialResult(self._record(Outcome.COMPLETED, base=base, answers=answers), deltas)

    def failed(self, why: str) -> TrialResult:
        base = self.evaluator.base_scores(self.split)
        return TrialResult(self._record(Outcome.FAILED, failure=why, base=base), {})

    def _searched(self) -> _Candidates:
        """Measure every epoch and keep the best edits by success on this split."""
        candidates = _Candidates()
        # Scaling makes neighbouring epochs alike: fitting two of them loses little.
        last = self.editor.step_count
        fitted_at = {math.ceil(last / 2), last}
        candidate: _Candidate | None = None
        for epoch, delta, loss in self._steps():
            deviation = self._measure(delta, 1.0, self.epsilons)
            noted = self._note(epoch, loss, self._look(delta), deviation)
            strengths = self._strengths(delta, deviation)
            candidate = _Candidate(epoch, delta, noted.success, strengths, noted.keeps_constraints)
            for epsilon in self.epsilons if noted.keeps_constraints else ():
                if Rule.PUBLISHED in self.rules and deviation.appears_within(epsilon):
                    candidates.offer(Rule.PUBLISHED, epsilon, candidate)
                if Rule.BEST in self.rules and deviation.probably_within(epsilon):
                    candidates.offer(Rule.BEST, epsilon, candidate)
            if Rule.FITTED in self.rules and (epoch in fitted_at or epoch > last):
                self._offer_fitted(candidates, candidate)
            if self._hopeless(candidate):
                self.stopped_early = epoch < last
                return candidates
            if self.prunes is not None and epoch < last and self.prunes(noted):
                self.pruned = True
                break
        # A method may end before its last epoch: what it ended with is fitted all the same.
        unfitted = set(range(1, last)) - fitted_at
        if Rule.FITTED in self.rules and candidate is not None and candidate.epoch in unfitted:
            self._offer_fitted(candidates, candidate)
        return candidates

    def _offer_fitted(self, candidates: _Candidates, candidate: _Candidate) -> None:
        """Offer an epoch at the strength that suits each budget.

        Where the unscaled edit breaks a constraint beside the budget, the strength at which it
        keeps all is looked for once: it is the same for every budget.
        """
        strengths = candidate.strengths
        # A second point, near the loosest budget, tells linear growth from quadratic.
        widest = self.epsilons[0]
        if not strengths.seen[1.0].probably_within(widest):
            alpha = strengths.predict(widest)
            if alpha >= LEAST_ALPHA:
                strengths.seen[alpha] = strengths.measure(alpha, widest)
        if not candidate.keeps_constraints:
            strengths.most = strongest(
                lambda alpha: alpha < 1 and self._keeps_constraints(candidate.delta.scaled(alpha)),
                strengths.predict(widest),
            )
        for epsilon in self.epsilons:
            alpha = strengths.predict(epsilon)
            if alpha < LEAST_ALPHA:
                continue
            success = candidate.success
            if alpha < 1:
                success = self._success(candidate.delta.scaled(alpha))
            candidates.offer(
                Rule.FITTED,
                epsilon,
                _Candidate(candidate.epoch, candidate.delta, success, strengths),
            )

    def _retrained(self) -> _Candidates:
        """Train to the pinned epoch; only the general text decides what is kept.

        Constraints on scores decide nothing: what they say on this split is reported.

        Fitted: the pinned epoch, scaled. Otherwise the last epoch within the budget up to it,
        as the published protocol does on its test split.
        """
        candidates = _Candidates()
        reached: tuple[int, Delta, float | None] | None = None
        for reached in self._steps():
            if self.rules != (Rule.FITTED,):
                self._keep(candidates, *reached)
            if self.pinned is not None and reached[0] >= self.pinned:
                break
        # Fitted is the pinned epoch, or the one with which the method ended before it.
        if self.rules == (Rule.FITTED,) and reached is not None:
            self._keep(candidates, *reached)
        return candidates

    def _keep(self, candidates: _Candidates, epoch: int, delta: Delta, loss: float | None) -> None:
        """Replace the epochs before this one, where the general text allows it."""
        deviation = self._measure(delta, 1.0, self.epsilons)
        candidate = _Candidate(epoch, delta, 0.0, self._strengths(delta, deviation))
        for rule in self.rules:
            for epsilon in self.epsilons:
                if rule is Rule.FITTED or deviation.probably_within(epsilon):
                    candidates.chosen[rule, epsilon] = candidate
        self._note(epoch, loss, self._look(delta), deviation)

    def _hopeless(self, candidate: _Candidate) -> bool:
        """Return whether this edit is surely over every budget at every strength.

        Deviation grows with strength, so the least strength decides. It is measured only where
        quadratic growth from the full strength says that it might be over.
        """
        deviation = candidate.strengths.seen[1.0]
        widest = self.epsilons[0]
        if deviation.lower * LEAST_ALPHA**2 <= widest:
            return False
        least = candidate.strengths.measure(LEAST_ALPHA, widest)
        candidate.strengths.seen[LEAST_ALPHA] = least
        return surely_over(least, widest)

    def _answers(
        self, candidates: _Candidates, base: Scores
    ) -> tuple[tuple[Answer, ...], dict[tuple[Rule, float], Delta]]:
        answers: list[Answer] = []
        deltas: dict[tuple[Rule, float], Delta] = {}
        known: dict[tuple[int, float], Scores] = {}
        # The default rule first: where the others chose the same edit, they share its full scores.
        for rule in sorted(self.rules, key=lambda rule: rule is not Rule.FITTED):
            for epsilon in self.epsilons:
                candidate = candidates.chosen.get((rule, epsilon))
                strength = self._strength(rule, epsilon, candidate)
                if candidate is None or strength is None:
                    answers.append(self._base_answer(rule, epsilon, base))
                    continue
                alpha, deviation = strength
                delta = candidate.delta if alpha == 1 else candidate.delta.scaled(alpha)
                key = (candidate.epoch, alpha)
                if key not in known:
                    with self._timed(Phase.SUCCESS):
                        known[key] = self._judge(rule, delta)
                scores = known[key]
                deltas[rule, epsilon] = delta
                answers.append(
                    Answer(
                        violations=self.evaluator.violations(self.split, scores),
                        rule=rule,
                        epsilon=epsilon,
                        epoch=candidate.epoch,
                        alpha=alpha,
                        scores=scores,
                        gain=scores.success - base.success,
                        gain_interval=self.evaluator.success_meter(self.split).gain_interval(
                            scores, base
                        ),
                        deviation=deviation,
                        verdict=deviation.verdict(epsilon),
                    )
                )
        return tuple(answers), deltas

    def _judge(self, rule: Rule, delta: Delta) -> Scores:
        """Return all scores, or the needed ones for the rules that stand beside the default."""
        beside = len(self.rules) > 1 and rule is not Rule.FITTED
        if not beside:
            return self.evaluator.full_scores(self.split, delta)
        with self.evaluator.model.edited(delta):
            return self.evaluator.constrained_scores(self.split, reported=True)

    def _strength(
        self, rule: Rule, epsilon: float, candidate: _Candidate | None
    ) -> tuple[float, Deviation] | None:
        if candidate is None:
            return None
        if rule is Rule.FITTED:
            return candidate.strengths.largest(epsilon)
        return 1.0, candidate.strengths.seen[1.0]

    def _base_answer(self, rule: Rule, epsilon: float, base: Scores) -> Answer:
        deviation = Deviation.none(self.evaluator.budget.confidence)
        return Answer(
            violations=self.evaluator.violations(self.split, base),
            rule=rule,
            epsilon=epsilon,
            epoch=None,
            alpha=0.0,
            scores=base,
            gain=0.0,
            deviation=deviation,
            verdict=deviation.verdict(epsilon),
        )

    def _steps(self) -> Iterator[tuple[int, Delta, float | None]]:
        """Pull the editor's epochs, from 1, timing them."""
        steps = self.editor.edit(
            self.evaluator.model,
            self.evaluator.split(self.split).canonical,
            self.evaluator.auxiliary_for(self.split),
            seed=self.seed,
        )
        epoch = 0
        while True:
            with self._timed(Phase.EDIT):
                step = next(steps, None)
            if step is None:
                return
            epoch += 1
            # Before anything is measured: what no bundle can hold is of no use.
            yield epoch, check_storable(step.delta), step.training_loss

    def _strengths(self, delta: Delta, deviation: Deviation) -> StrengthSearch:
        return StrengthSearch(
            measure=lambda alpha, epsilon: self._measure(delta, alpha, (epsilon,)),
            seen={1.0: deviation},
            most=self.most,
        )

    def _measure(self, delta: Delta, alpha: float, epsilons: tuple[float, ...]) -> Deviation:
        with self._timed(Phase.DEVIATION):
            scaled = delta if alpha == 1 else delta.scaled(alpha)
            return self.evaluator.meter.measure(scaled, epsilons, sure=False)

    def _success(self, delta: Delta) -> float:
        with self._timed(Phase.SUCCESS), self.evaluator.model.edited(delta):
            return self.evaluator.success_meter(self.split).success().success

    def _look(self, delta: Delta) -> Scores:
        """Return success, with what the constraints are about."""
        with self._timed(Phase.SUCCESS), self.evaluator.model.edited(delta):
            return self.evaluator.constrained_scores(self.split)

    def _keeps_constraints(self, delta: Delta) -> bool:
        violations = self.evaluator.violations(self.split, self._look(delta))
        return all(violation <= 0 for violation in violations.values())

    def _note(
        self, epoch: int, loss: float | None, scores: Scores, deviation: Deviation
    ) -> EpochRecord:
        record = EpochRecord(
            violations=self.evaluator.violations(self.split, scores),
            epoch=epoch,
            training_loss=loss,
            success=scores.success,
            deviation=deviation,
        )
        self.epochs.append(record)
        if self.on_epoch is not None:
            self.on_epoch(record)
        return record

    @contextmanager
    def _timed(self, phase: Phase) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def _record(
        self,
        outcome: Outcome,
        *,
        failure: str | None = None,
        base: Scores | None = None,
        answers: tuple[Answer, ...] = (),
    ) -> TrialRecord:
        return TrialRecord(
            outcome=outcome,
            failure=failure,
            editor=self.editor.name(),
            hyperparameters=self.editor.model_dump(mode="json"),
            split=self.split,
            seed=self.seed,
            base=base,
            epochs=tuple(self.epochs),
            answers=answers,
            stopped_early=self.stopped_early,
            pruned=self.pruned,
            seconds=self.seconds,
            versions=library_versions(),
        )


def run_editor(
    evaluator: Evaluator,
    editor: Editor,
    *,
    seed: int,
    split: SplitName = SplitName.VAL,
    epoch: int | None = None,
    rule: Rule | None = None,
    epsilon: float | None = None,
    most: float = 1.0,
    on_epoch: EpochListener | None = None,
    prunes: PruneRule | None = None,
) -> TrialResult:
    """Return what the editor gives; a diverged or too large edit is a failed record.

    With `epoch` the epoch is not chosen here: no score on this split steers anything. That
    is how a winner is retrained on the test split. `rule` and `epsilon` narrow the answers;
    fitted ones are scaled to `most` at most. `prunes` is asked after each epoch but the last;
    the epochs so far are then answered for, as if the method had ended there.

    Raises:
        ConfigError: the editor cannot edit this model, or yields deltas that no bundle holds.
    """
    editor.check_model(evaluator.model, evaluator.companions)
    trial = _Trial(
        evaluator=evaluator,
        editor=editor,
        seed=seed,
        split=split,
        pinned=epoch,
        rules=tuple(Rule) if rule is None else (rule,),
        epsilons=evaluator.budget.epsilons if epsilon is None else (epsilon,),
        most=most,
        on_epoch=on_epoch,
        prunes=prunes,
    )
    try:
        return trial.run()
    except EditError as error:
        return trial.failed(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no details"])[0]
        return trial.failed(f"Memory ran out: {reason.partition(_ALLOCATOR)[2] or reason}")


def run_trial(
    model: LanguageModel,
    task: Task,
    editor: Editor,
    budget: Budget | None = None,
    *,
    seed: int = 0,
    general: GeneralText | None = None,
) -> TrialResult:
    """Return what an editor gives on the task's validation split, under the budget.

    Raises:
        ConfigError: a budget is below the noise floor, a model from elsewhere has no general
            text to be judged on, or the editor cannot edit this model.
        TaskError: a row exceeds the model's context, or there is too little general text.
    """
    text = load_general_text(None, model) if general is None else general
    return run_editor(Evaluator(model, task, budget or Budget(), text), editor, seed=seed)


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("tuner", "torch", "transformers", "peft")
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }
