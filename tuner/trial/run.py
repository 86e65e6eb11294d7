"""One trial: an editor with one set of hyperparameters, under the budget. Runs anywhere."""

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import final

import torch

from tuner.deltas.memory.memory import MemoryDelta
from tuner.deltas.registry import check_storable
from tuner.editing.companions import Companions
from tuner.editing.constraint import Constraint, strictest
from tuner.editing.corpus import GeneralText, TextPart, load_general_text
from tuner.editing.delta import Delta
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, LossKind, Split, Task
from tuner.errors import EditError
from tuner.evaluation.constraints import check_measured, violations
from tuner.evaluation.deviation.budget import Budget, Certificate, Deviation
from tuner.evaluation.deviation.gradient_store import GradientStore
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.evaluation.deviation.scaling import LEAST_ALPHA, StrengthSearch, strongest, surely_over
from tuner.evaluation.metrics import METRICS
from tuner.evaluation.metrics._routing import scope_figures
from tuner.evaluation.scores import Scores
from tuner.evaluation.success import SuccessMeter
from tuner.files.cache import Cache, cache_folder
from tuner.trial.records import (
    Answer,
    EpochRecord,
    Outcome,
    Phase,
    Rule,
    SplitName,
    TrialRecord,
)

EpochListener = Callable[[EpochRecord], None]

PruneRule = Callable[[EpochRecord], bool]
"""Returns whether a trial ends after an epoch that is not its last."""


@final
@dataclass(frozen=True)
class TrialResult:
    """A trial's record, with the deltas of its answers (none where the base is the answer)."""

    record: TrialRecord
    deltas: Mapping[tuple[Rule, float], Delta]

    def at(self, epsilon: float, rule: Rule = Rule.FITTED) -> "TrialAnswer":
        """Return the answer for a budget.

        Raises:
            EditError: the trial failed.
            KeyError: the trial was not run with this budget.
        """
        if self.record.failure is not None:
            raise EditError(self.record.failure)
        return TrialAnswer(self.record.answer(epsilon, rule), self.deltas.get((rule, epsilon)))


@final
@dataclass(frozen=True)
class TrialAnswer:
    """What a trial offers for one budget: the numbers and, unless it is the base, the delta."""

    record: Answer
    delta: Delta | None

    @property
    def success(self) -> float:
        """The share of OOD rows that the edited model gets right."""
        return self.record.success

    @property
    def gain(self) -> float:
        """Success minus the base model's."""
        return self.record.gain

    @property
    def deviation(self) -> Deviation:
        """The rise of the loss on general text."""
        return self.record.deviation


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


_ALLOCATOR = "DefaultCPUAllocator: "
"""With it begins what torch says, as a plain RuntimeError, where a processor's memory runs out."""


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _ALLOCATOR in str(error)


@final
class Evaluator:
    """A base model, a task and general text, with all that does not depend on the trial.

    Long-lived: base losses and base scores are computed once and serve every trial. Edits must
    keep the task's constraints and the `constraints` given here; `metrics` are only reported.

    Raises:
        ConfigError: a budget is below the noise floor of this model, precision and device, or a
            constraint or a metric is about something that the task cannot measure.
        TaskError: a row exceeds the model's context, or there is too little general text.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        budget: Budget,
        general: GeneralText,
        *,
        constraints: Sequence[Constraint] = (),
        metrics: Sequence[str] = (),
        cache: Cache | None = None,
        companions: Companions | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.budget = budget
        self.constraints = strictest((*task.constraints, *constraints))
        self.metrics = tuple(metrics)
        """What is reported beside the usual figures, without a limit."""
        check_measured((*self.constraints, *self.metrics), task)
        self.general = general
        self._cache = cache or Cache(cache_folder())
        self._gradients = GradientStore(model, general, self._cache)
        self._meter = self._deviation_meter(TextPart.SEARCH, budget.confidence)
        self.noise_floor = self._meter.check_budget(budget)
        self._splits = {
            SplitName.VAL: task.val.limited(task.simultaneous_edits),
            SplitName.TEST: task.test.limited(task.simultaneous_edits),
        }
        self._certifiers: dict[float, DeviationMeter] = {}
        self._success: dict[SplitName, SuccessMeter] = {}
        self._base: dict[SplitName, Scores] = {}
        self.companions = companions or Companions(device=str(model.device))
        """The small models that some editors need beside the model, loaded once for all trials."""
        self.auxiliary = Auxiliary(
            general=general.corpus(TextPart.AUXILIARY),
            training=task.train,
            cache=self._cache,
            companions=self.companions,
        )
        """What editors may read beyond the examples, whatever the split."""

    def run(
        self,
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
        editor.check_model(self.model, self.companions)
        trial = _Trial(
            evaluator=self,
            editor=editor,
            seed=seed,
            split=split,
            pinned=epoch,
            rules=tuple(Rule) if rule is None else (rule,),
            epsilons=self.budget.epsilons if epsilon is None else (epsilon,),
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

    def certify(self, delta: Delta, epsilon: float, *, confidence: float = 0.95) -> Certificate:
        """Return the statement, from text that no search has read, that `delta` keeps a budget.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        if confidence not in self._certifiers:
            self._certifiers[confidence] = self._deviation_meter(TextPart.CONFIRMATION, confidence)
        return self._certifiers[confidence].certify(delta, epsilon)

    def base_scores(self, split: SplitName) -> Scores:
        """Return what the unedited model does on a split."""
        if split not in self._base:
            self._base[split] = self.success_meter(split).scores()
        return self._base[split]

    def success_meter(self, split: SplitName) -> SuccessMeter:
        """Return the judge of a split."""
        if split not in self._success:
            limited = (constraint.metric for constraint in self.constraints)
            self._success[split] = SuccessMeter(
                self.model,
                self.split(split),
                self.task.threshold,
                self.task.success,
                metrics=dict.fromkeys((*METRICS.names(), *limited, *self.metrics)),
            )
        return self._success[split]

    def constrained_scores(self, split: SplitName, *, reported: bool = False) -> Scores:
        """Return success on a split with what the constraints are about, and nothing else.

        With `reported`, also the metrics that are to be reported.
        """
        metrics = dict.fromkeys(constraint.metric for constraint in self.constraints)
        if reported:
            metrics |= dict.fromkeys(self.metrics)
        return self.success_meter(split).scores(metrics)

    def full_scores(self, split: SplitName, delta: Delta) -> Scores:
        """Return all scores of an edit; of a memory also how well it tells its edits' prompts."""
        meter = self.success_meter(split)
        with self.model.edited(delta):
            scores = meter.scores()
        if not isinstance(delta, MemoryDelta):
            return scores
        return scores.model_copy(update=scope_figures(self.model, delta, self.split(split)))

    def violations(self, split: SplitName, edited: Scores) -> dict[str, float]:
        """Return by how much an edit breaks each constraint beside the budget."""
        if not self.constraints:
            return {}
        return violations(self.constraints, edited, self.base_scores(split))

    def split(self, name: SplitName) -> Split:
        """Return a split of the task, with the edits that are made at once."""
        return self._splits[name]

    @property
    def meter(self) -> DeviationMeter:
        """The deviation on the search corpus."""
        return self._meter

    def auxiliary_for(self, split: SplitName) -> Auxiliary:
        """Return what editors may read beyond the examples, the split's true facts among it."""
        facts = self.split(split).facts
        if not facts:
            return self.auxiliary
        return replace(self.auxiliary, facts=ExampleSet(loss=LossKind.LIKELIHOOD, rows=facts))

    def check_unchanged(self) -> None:
        """Verify that no trial has changed the base model, nor a companion model.

        Raises:
            EditError: a weight differs from what was loaded.
        """
        self.model.check_unchanged()
        self.companions.check_unchanged()

    def _deviation_meter(self, part: TextPart, confidence: float) -> DeviationMeter:
        return DeviationMeter(
            self.model,
            self.general.corpus(part),
            confidence=confidence,
            two_sided=self.budget.two_sided,
            divergence=self.budget.divergence,
            gradient_of=self._gradients.of,
            cache=self._cache,
        )


@final
@dataclass
class _Trial:
    """The state of one run of `Evaluator.run`."""

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
        violated = self.evaluator.violations(self.split, self._look(delta))
        return all(violation <= 0 for violation in violated.values())

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
    return Evaluator(model, task, budget or Budget(), text).run(editor, seed=seed)


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("tuner", "torch", "transformers", "peft")
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }
