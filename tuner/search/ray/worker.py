"""What a worker does: it keeps a base model ready and turns hyperparameters into results.

Nothing here knows of Ray or Optuna; the executor puts it into actors.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch

from tuner.bundle.bundle import Bundle, make_bundle
from tuner.editing.corpus import TextPart, load_general_text
from tuner.editing.delta import Delta
from tuner.editing.model import load_model
from tuner.editing.task_folder import load_task
from tuner.errors import ConfigError, DiskError, EditError, TaskError
from tuner.evaluation.constraints import WORST
from tuner.evaluation.deviation.budget import Certificate, Deviation, Verdict, epsilon_name
from tuner.evaluation.identity import delta_hash
from tuner.evaluation.metrics import METRICS
from tuner.evaluation.scores import Scores
from tuner.files.atomic_file import disk_trouble_in_words, write_text
from tuner.search.config import StudyConfig
from tuner.search.schedule import TrialSchedule
from tuner.search.schedulers import NO_SCHEDULER
from tuner.search.space import Space
from tuner.search.storage.folder import RECORD, StudyFolder, TrialFile, read_whole
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Answer, Outcome, SeedResult, SplitName, TrialRecord
from tuner.trial.run import run_editor

EvaluatorMaker: TypeAlias = Callable[[StudyConfig], Evaluator]


def make_evaluator(config: StudyConfig) -> Evaluator:
    """Return the evaluator that a study's trials run on.

    Raises:
        ConfigError: the model cannot be loaded, a budget is below its noise floor, or the task
            cannot measure what a constraint is about.
        TaskError: the task is malformed, or there is too little general text.
    """
    for metric in (*(constraint.metric for constraint in config.constraints), *config.metrics):
        METRICS.find(metric)  # the driver has imported an outsider's, and so must we
    model = load_model(
        config.model, revision=config.revision, dtype=config.dtype, device=config.device
    )
    general = load_general_text(
        config.general, model, block_length=config.block_length, tokens=config.general_tokens
    )
    task = load_task(config.task, config.edits)
    return Evaluator(
        model,
        task,
        config.budget,
        general,
        constraints=config.constraints,
        metrics=config.metrics,
    )


@final
@dataclass(frozen=True)
class WorkerSetup:
    """All that a worker must know of its study. Travels to other machines; holds no secret."""

    config: StudyConfig
    space: Space
    uid: str
    root: Path
    make_evaluator: EvaluatorMaker = make_evaluator


@final
@dataclass(frozen=True)
class Confirm:
    """Judge a trial's delta on the confirmation corpus."""

    epsilon: float
    number: int
    confidence: float


@final
@dataclass(frozen=True)
class Retest:
    """Retrain a winner on the test split with another seed, scaled to `most` at most."""

    epsilon: float
    number: int
    epoch: int
    seed: int
    most: float = 1.0


Job: TypeAlias = Confirm | Retest


@final
class Worker:
    """Runs trials of one study, one after the other, on a resident base model."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._config = setup.config
        self._folder = StudyFolder(setup.root)
        self._loaded: Evaluator | None = None

    @property
    def _evaluator(self) -> Evaluator:
        if self._loaded is None:
            if self._config.gpus == 0:
                # Threads of several workers on the same cores get in each other's way.
                torch.set_num_threads(1)
            evaluator = self._setup.make_evaluator(self._config)
            self._setup.space.check_model(evaluator.model, evaluator.companions)
            text = evaluator.general.corpus(TextPart.SEARCH).hash
            self._folder.claim_base(evaluator.model.fingerprint, text)
            self._folder.claim_companions(evaluator.companions.fingerprints)
            self._loaded = evaluator
        return self._loaded

    def run(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Run a trial and leave its record and bundles in its folder, all at once.

        Whatever the trial does, a record is left; a second call for a finished trial does nothing.

        Raises:
            TunerError: no evaluator can be made, or the study's model, task and space do not fit
                together, so that the study must be described anew.
            DiskError: a disk is full, or may not be written to; the trial is still to be run.
        """
        with disk_trouble_in_words():
            self._run(number, dict(parameters))

    def _run(self, number: int, parameters: dict[str, Any]) -> None:
        if self._folder.read_trial(self._setup.uid, number, parameters) is not None:
            return  # an earlier worker finished it and died before it could say so
        evaluator = self._evaluator
        record: TrialRecord | None = None
        bundles: dict[float, Bundle] = {}
        crash: str | None = None
        told: str | None = None
        try:
            with disk_trouble_in_words():
                record, bundles = self._try(evaluator, number, parameters)
                evaluator.check_unchanged()
                # Those too that only this trial asked for.
                self._folder.claim_companions(evaluator.companions.fingerprints)
        except (ConfigError, TaskError, DiskError):
            raise
        except Exception as error:
            # A bug in an editor, or a base model that an editor has changed. Neither the result
            # nor the evaluator can be trusted, and the next trial loads its own.
            record, bundles, crash = None, {}, _describe(error)
            self._loaded = None
            told = traceback.format_exc()
        file = TrialFile(
            uid=self._setup.uid, number=number, parameters=parameters, record=record, crash=crash
        )
        with self._folder.publishing(file) as place:
            for epsilon, bundle in bundles.items():
                bundle.save(place / epsilon_name(epsilon))
            if told is not None:
                write_text(place / "traceback.txt", told)

    def perform(self, job: Job) -> None:
        """Do a job of the phases after the search and leave its file; done jobs are not repeated.

        Raises:
            TunerError: the evaluator cannot be made.
        """
        with disk_trouble_in_words():
            match job:
                case Confirm():
                    self._confirm(job)
                case Retest():
                    self._retest(job)

    def _try(
        self, evaluator: Evaluator, number: int, parameters: dict[str, Any]
    ) -> tuple[TrialRecord, dict[float, Bundle]]:
        seed = trial_seed(self._config, number)
        try:
            editor = self._setup.space.build(parameters)
        except ConfigError as error:
            # An invalid combination of values fails the trial, not the study.
            name = self._setup.space.branch(parameters).editor.name()
            failed = TrialRecord.failed(
                editor=name,
                hyperparameters=parameters,
                split=SplitName.VAL,
                seed=seed,
                why=str(error),
            )
            return failed, {}
        schedule = None
        if self._config.scheduler != NO_SCHEDULER:
            schedule = TrialSchedule(
                self._config, self._folder, self._setup.uid, number, editor.step_count
            )
        result = run_editor(
            evaluator, editor, seed=seed, prunes=schedule.prunes if schedule else None
        )
        if schedule is not None:
            schedule.end(result.record)
        bundles: dict[float, Bundle] = {}
        if result.record.outcome is Outcome.COMPLETED:
            for epsilon in self._config.budget.epsilons:
                bundle = make_bundle(
                    evaluator.model,
                    evaluator.task,
                    result,
                    epsilon,
                    rule=self._config.rule,
                    task_path=self._config.task,
                )
                if bundle is not None:
                    bundles[epsilon] = bundle
        return result.record, bundles

    def _confirm(self, job: Confirm) -> None:
        path = self._folder.confirmation(job.epsilon, job.number)
        known = read_whole(path, Certificate)
        if known is not None and known.deviation.confidence >= job.confidence:
            return
        folder = self._folder.bundle(job.number, job.epsilon)
        bundle = Bundle.load(folder, self._evaluator.companions)
        certificate = self._certify(bundle.delta, job.epsilon, job.confidence)
        write_text(path, certificate.model_dump_json())

    def _certify(self, delta: Delta, epsilon: float, confidence: float) -> Certificate:
        try:
            return self._evaluator.certify(delta, epsilon, confidence=confidence)
        except EditError:
            # The edited model's loss on fresh text is not a number: worse than any deviation.
            return _certificate(epsilon, Verdict.OVER, confidence).model_copy(
                update={
                    "delta_hash": delta_hash(delta),
                    "base_fingerprint": self._evaluator.model.fingerprint,
                }
            )

    def _retest(self, job: Retest) -> None:
        path = self._folder.retest(job.epsilon, job.number, job.seed)
        if read_whole(self._folder.test_base, Scores) is None:
            base = self._evaluator.base_scores(SplitName.TEST)
            write_text(self._folder.test_base, base.model_dump_json())
        if read_whole(path, SeedResult) is not None:
            return
        rule = self._config.rule
        trial = read_whole(self._folder.trial(job.number) / RECORD, TrialFile)
        if trial is None:
            raise DiskError(
                f"The record of trial {job.number} is not whole in {self._folder.root}. "
                "Run the same command again: it makes the trial anew."
            )
        result = run_editor(
            self._evaluator,
            self._setup.space.build(trial.parameters),
            seed=job.seed,
            split=SplitName.TEST,
            epoch=job.epoch,
            rule=rule,
            epsilon=job.epsilon,
            most=job.most,
        )
        confidence = self._config.budget.confidence
        delta = result.deltas.get((rule, job.epsilon))
        if result.record.outcome is Outcome.FAILED:
            # Nothing came of this seed: what its user has is the base model, and no limit kept.
            answer = self._base_answer(job.epsilon)
            certificate = _certificate(job.epsilon, Verdict.UNRESOLVED, confidence)
        elif delta is None:
            answer = result.record.answer(job.epsilon, rule)
            certificate = _certificate(job.epsilon, Verdict.WITHIN, confidence)
        else:
            answer = result.record.answer(job.epsilon, rule)
            certificate = self._certify(delta, job.epsilon, confidence)
        retested = SeedResult(seed=job.seed, answer=answer, certificate=certificate)
        write_text(path, retested.model_dump_json())

    def _base_answer(self, epsilon: float) -> Answer:
        return Answer(
            violations={constraint.name: WORST for constraint in self._evaluator.constraints},
            rule=self._config.rule,
            epsilon=epsilon,
            epoch=None,
            alpha=0.0,
            scores=self._evaluator.base_scores(SplitName.TEST),
            gain=0.0,
            deviation=Deviation.none(self._config.budget.confidence),
            verdict=Verdict.UNRESOLVED,
        )


def trial_seed(config: StudyConfig, number: int) -> int:
    """Return the seed of a trial: each its own, so that no seed's luck is selected for."""
    return config.seed + number


def retest_seeds(config: StudyConfig) -> tuple[int, ...]:
    """Return the seeds of the retraining on the test split; no trial has used them."""
    first = config.seed + 1_000_000
    return tuple(range(first, first + config.test_seeds))


def _certificate(epsilon: float, verdict: Verdict, confidence: float) -> Certificate:
    """Return a statement that rests on no text, since there is no edited model to read it."""
    return Certificate(
        epsilon=epsilon,
        verdict=verdict,
        deviation=Deviation.none(confidence),
        corpus="none",
        corpus_hash="",
    )


def _describe(error: Exception) -> str:
    """Return an exception in one line, with where it was raised."""
    if isinstance(error, EditError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first}{where}"
