"""What came out of a study, during it and afterwards."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pydantic import SecretStr, TypeAdapter

from tuner.bundle.bundle import Bundle
from tuner.editing.constraint import Constraints, strictest
from tuner.errors import ConfigError, StudyFailed
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.search.config import AS_WRITTEN, StudyConfig
from tuner.search.samplers import chosen_sampler
from tuner.search.storage.folder import StudyFolder, read_whole
from tuner.search.storage.ledger import Ledger
from tuner.trial.records import Answer, StudyResultRecord, StudySummary, TrialEntry, Winner

TASK_CONSTRAINTS = "task constraints"
"""Under this key the ledger remembers the constraints that the task carried."""

SPELLING = "spelling"
"""Under this key the ledger remembers how the user wrote paths, for show only."""


@final
@dataclass(frozen=True)
class Best:
    """The selected edit for one budget."""

    winner: Winner
    folder: Path
    """Where its bundle lies, with its certificate."""

    @property
    def bundle(self) -> Bundle:
        """The delta with its provenance and certificate."""
        return Bundle.load(self.folder)

    @property
    def answer(self) -> Answer:
        """What it gave on the validation split."""
        return self.winner.validation

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What it was made with."""
        return self.winner.hyperparameters


@final
@dataclass(frozen=True)
class StudyResult:
    """A study as it stands."""

    record: StudyResultRecord
    finished: bool
    """Whether every trial is in the result; its winners may be those of an earlier, shorter run."""

    @property
    def trials(self) -> tuple[TrialEntry, ...]:
        """Every trial, in the order of their numbers."""
        return self.record.entries

    def best(self, epsilon: float) -> Best:
        """Return the selected edit for a budget.

        Raises:
            ConfigError: the study has no such budget.
            StudyFailed: no trial both kept the budget and gained something over the base model.
        """
        summary = self.record.summary
        if epsilon not in summary.epsilons:
            known = ", ".join(map(epsilon_name, summary.epsilons))
            raise ConfigError(f"The study has no budget {epsilon_name(epsilon)}; it has {known}.")
        for winner in self.record.winners:
            if winner.epsilon == epsilon:
                return Best(winner, StudyFolder(summary.folder).winner(epsilon))
        raise StudyFailed(
            f"No trial of {summary.name!r} gained anything within the budget "
            f"{epsilon_name(epsilon)}: the base model itself is the answer."
        )


def open_study(folder: Path, storage: SecretStr | None = None) -> StudyResult:
    """Return a study as it stands on disk, also while another process runs it.

    Raises:
        ConfigError: there is no study in `folder`.
        ClusterError: its ledger cannot be opened.
    """
    place = StudyFolder(folder)
    ledger = Ledger.read(place, folder.name, storage)
    if not ledger.definition:
        raise ConfigError(f"The study in {folder} has not begun.")
    done = read_whole(place.result, StudyResultRecord)
    record = StudyResultRecord(
        summary=summary_of(ledger, place),
        winners=done.winners if done else (),
        entries=tuple(ledger.trials()),
    )
    # A study that goes on with more trials has more entries than its last result.
    finished = done is not None and len(done.entries) == len(record.entries)
    return StudyResult(record, finished)


def with_winners(result: StudyResultRecord) -> StudyResultRecord:
    """Return the result with the selected bundles, which bear a certificate, as the winners'."""
    folder = StudyFolder(result.summary.folder)
    won = {(winner.trial, winner.epsilon) for winner in result.winners}
    entries = tuple(
        entry.model_copy(
            update={
                "bundles": tuple(
                    (eps, folder.winner(eps) if (entry.number, eps) in won else path)
                    for eps, path in entry.bundles
                )
            }
        )
        for entry in result.entries
    )
    return result.model_copy(update={"entries": entries})


def summary_of(ledger: Ledger, folder: StudyFolder) -> StudySummary:
    """Return what a study was asked to do, as its ledger has it.

    Raises:
        ConfigError: the ledger does not say it in a way that this version understands.
    """
    try:
        return _summary(ledger, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"The ledger of {folder.root} does not say what the study was asked to do: it is "
            f"damaged, or was written by another version of tuner ({type(error).__name__})."
        ) from None


def _summary(ledger: Ledger, folder: StudyFolder) -> StudySummary:
    asked = ledger.definition
    known = {key: value for key, value in asked.items() if key in StudyConfig.model_fields}
    config = StudyConfig.model_validate(known, context=AS_WRITTEN)
    space = asked["space definition"]
    of_task = TypeAdapter[Constraints](Constraints).validate_python(asked.get(TASK_CONSTRAINTS, ()))
    flat = config.per_editor or len(space) == 1
    packages = ("tuner", "torch", "transformers", "peft", "ray", "optuna")
    return StudySummary(
        name=config.name,
        uid=ledger.uid,
        model=asked.get(SPELLING, {}).get("model", config.model),
        model_fingerprint=folder.base_fingerprint() or "",
        task=Path(config.task).name,
        task_hash=asked["task content"],
        space=Path(config.space).stem,
        sampler=chosen_sampler(config.sampler, flat=flat),
        scheduler=config.scheduler,
        rule=config.rule,
        target_epsilon=config.target_epsilon,
        epsilons=config.budget.epsilons,
        constraints=strictest((*of_task, *config.constraints)),
        metrics=config.metrics,
        seed=config.seed,
        trials=config.trials,
        versions={package: importlib.metadata.version(package) for package in packages},
        folder=folder.root,
    )
