"""A delta with all that is needed to trust and use it, as a folder of safetensors and JSON."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuner.editing.companions import Companion, Companions
from tuner.editing.delta import AdditiveDelta, Delta, WeightDelta
from tuner.editing.ensemble_delta import EnsembleDelta
from tuner.editing.log_ratio import LogRatio
from tuner.editing.model import Dtype, LanguageModel, load_tokenizer
from tuner.editing.sense_delta import SenseDelta
from tuner.editing.task import Task
from tuner.errors import BaseMismatch, ConfigError
from tuner.evaluation.budget import Certificate, epsilon_name
from tuner.memories.grace import GraceDelta, GraceRecord
from tuner.memories.look_up import LookUpDelta, LookUpRecord
from tuner.memories.memory import MemoryDelta, Surroundings
from tuner.memories.retrieval import RetrievalDelta, RetrievalRecord
from tuner.memories.serac import SeracDelta, SeracRecord
from tuner.memories.wise import WiseDelta, WiseRecord
from tuner.records import Answer, Rule, SplitName
from tuner.trial import TrialResult
from tuner.validation import describe_problem

Kind = Literal[
    "weights", "senses", "ensemble", "look_up", "grace", "wise", "retrieve_and_prompt", "serac"
]
MemoryRecords: TypeAlias = Annotated[
    LookUpRecord | GraceRecord | WiseRecord | RetrievalRecord | SeracRecord,
    Field(discriminator="kind"),
]
_MEMORIES: dict[str, type[MemoryDelta]] = {
    kind.kind: kind for kind in (LookUpDelta, GraceDelta, WiseDelta, RetrievalDelta, SeracDelta)
}
# What becomes of the tensors; an ensemble's are those of the small model's own change.
_FROM_TENSORS: dict[str, Callable[[Mapping[str, Tensor]], AdditiveDelta]] = {
    WeightDelta.kind: WeightDelta.from_tensors,
    SenseDelta.kind: SenseDelta.from_tensors,
}
TENSORS_FILE = "delta.safetensors"
MANIFEST_FILE = "delta.json"


@final
class Manifest(BaseModel):
    """Where a delta comes from and what is known about it: `delta.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: Kind
    companion: Companion | None = Field(
        default=None, description="The small model that an ensemble brings along."
    )
    memory: MemoryRecords | None = Field(
        default=None, description="What a memory needs beside its tensors."
    )
    base: str = Field(description="Model id: builtin:NAME, a folder, or a hub id.")
    base_revision: str | None
    base_fingerprint: str = Field(description="Hash of the base's weights, dtype and tokenizer.")
    base_dtype: Dtype
    model_type: str
    task: str
    task_hash: str
    edits: int | None = Field(
        default=None,
        exclude_if=lambda edits: edits is None,
        description="How many edits were made at once; None is all of the split's.",
    )
    editor: str
    hyperparameters: dict[str, Any]
    seed: int
    split: SplitName
    epsilon: float
    rule: Rule
    answers: tuple[Answer, ...] = Field(description="What the trial gave for every budget.")
    certificate: Certificate | None = None
    changed: bool = Field(
        default=False,
        exclude_if=lambda changed: not changed,
        description="Whether edits were added or removed after the trial: its answers are those "
        "of the memory before.",
    )
    versions: dict[str, str]

    @model_validator(mode="after")
    def _has_its_answer(self) -> Self:
        if not any(a.epsilon == self.epsilon and a.rule is self.rule for a in self.answers):
            raise ValueError(
                f"no answer for epsilon {epsilon_name(self.epsilon)} and rule {self.rule}."
            )
        return self

    @model_validator(mode="after")
    def _has_its_companion(self) -> Self:
        if (self.kind == EnsembleDelta.kind) != (self.companion is not None):
            raise ValueError(
                f"an ensemble has a companion and nothing else has one, but kind is {self.kind!r} "
                f"and companion is {'absent' if self.companion is None else 'given'}."
            )
        return self

    @model_validator(mode="after")
    def _has_its_memory(self) -> Self:
        expected = self.kind if self.kind in _MEMORIES else None
        found = None if self.memory is None else self.memory.kind
        if found != expected:
            raise ValueError(
                f"a delta of kind {self.kind!r} needs {expected or 'no'} memory, but memory is "
                f"{found or 'absent'}."
            )
        return self

    @property
    def answer(self) -> Answer:
        """The answer that this delta is."""
        return next(
            answer
            for answer in self.answers
            if answer.epsilon == self.epsilon and answer.rule is self.rule
        )

    @property
    def runs_beside(self) -> bool:
        """Whether the delta runs beside the base model and cannot be written into its weights."""
        return self.kind not in _FROM_TENSORS

    def check_base(self, model: LanguageModel) -> None:
        """Verify that `model` is the very base that the delta was made from.

        Raises:
            BaseMismatch: its weights, dtype or tokenizer differ.
        """
        if model.fingerprint != self.base_fingerprint:
            raise BaseMismatch(
                f"This delta was made from {self.base} "
                f"({self.base_dtype}, fingerprint {self.base_fingerprint[:12]}…) "
                f"and cannot be used with {model.id} ({_dtype_name(model)}, fingerprint "
                f"{model.fingerprint[:12]}…). Load the same weights in the same dtype."
            )


@final
@dataclass(frozen=True)
class StoredBundle:
    """A bundle as it lies on disk: to read or to copy it, no model is needed."""

    tensors: Mapping[str, Tensor]
    manifest: Manifest

    def save(self, folder: str | Path) -> Path:
        """Write the bundle and return its folder; the folder is whole or not there at all.

        Raises:
            ConfigError: the folder exists and is no bundle, or cannot be written.
        """
        target = Path(folder).absolute()
        if target.exists() and not (target / MANIFEST_FILE).is_file():
            raise ConfigError(f"{target} exists and is no bundle; choose another folder.")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True, exist_ok=True)
            save_file(dict(self.tensors), part / TENSORS_FILE)
            text = self.manifest.model_dump_json(indent=2)
            (part / MANIFEST_FILE).write_text(f"{text}\n", encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise ConfigError(f"The bundle cannot be written to {target}: {error}") from None
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the bundle in `folder`.

        Raises:
            ConfigError: the folder is no bundle, or is damaged.
        """
        source = Path(folder)
        try:
            text = (source / MANIFEST_FILE).read_text(encoding="utf-8")
            manifest = Manifest.model_validate_json(text)
            tensors = load_file(source / TENSORS_FILE)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{source} is no bundle: {Path(error.filename or TENSORS_FILE).name} is missing. "
                f"A bundle holds {MANIFEST_FILE} and {TENSORS_FILE}."
            ) from None
        except ValidationError as error:
            reason = "; ".join(describe_problem(p) for p in error.errors(include_url=False))
            raise ConfigError(f"The bundle {source} is damaged: {reason}") from None
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"The bundle {source} is damaged: {error}") from None
        return cls(tensors, manifest)

    def open(self, companions: Companions | None = None) -> "Bundle":
        """Return the bundle with its delta.

        The models that the delta brings along are loaded through `companions`, or else for
        themselves.

        Raises:
            ConfigError: the tensors do not fit the manifest, or such a model cannot be loaded.
            BaseMismatch: such a model is another than the one the delta was made with.
        """
        delta = _delta_from(self.tensors, self.manifest, companions or Companions())
        return Bundle(delta, self.manifest)


@final
@dataclass(frozen=True)
class Bundle:
    """A delta and its manifest."""

    delta: Delta
    manifest: Manifest

    @property
    def stored(self) -> StoredBundle:
        """The bundle as it is stored."""
        return StoredBundle(self.delta.tensors(), self.manifest)

    def save(self, folder: str | Path) -> Path:
        """Write the bundle and return its folder; the folder is whole or not there at all.

        Raises:
            ConfigError: the folder exists and is no bundle, or cannot be written.
        """
        return self.stored.save(folder)

    @classmethod
    def load(cls, folder: str | Path, companions: Companions | None = None) -> "Bundle":
        """Return the bundle in `folder`.

        The models that its delta brings along are loaded through `companions`, or else for
        themselves.

        Raises:
            ConfigError: the folder is no bundle, or is damaged, or such a model cannot be loaded.
            BaseMismatch: such a model is another than the one the delta was made with.
        """
        return StoredBundle.load(folder).open(companions)

    def check_base(self, model: LanguageModel) -> None:
        """Verify that `model` is the very base that the delta was made from.

        Raises:
            BaseMismatch: its weights, dtype or tokenizer differ.
        """
        self.manifest.check_base(model)


def make_bundle(
    model: LanguageModel,
    task: Task,
    result: TrialResult,
    epsilon: float,
    *,
    rule: Rule = Rule.FITTED,
    certificate: Certificate | None = None,
) -> Bundle | None:
    """Return the bundle of a trial's answer, or None where the answer is the base model.

    Raises:
        EditError: the trial failed.
        KeyError: the trial was not run with this budget and rule.
    """
    answer = result.at(epsilon, rule)
    if answer.delta is None:
        return None
    record = result.record
    return Bundle(
        answer.delta,
        Manifest(
            kind=TypeAdapter[Kind](Kind).validate_python(answer.delta.kind),
            companion=answer.delta.companion if isinstance(answer.delta, EnsembleDelta) else None,
            memory=answer.delta.record if isinstance(answer.delta, MemoryDelta) else None,
            base=model.id,
            base_revision=model.revision,
            base_fingerprint=model.fingerprint,
            base_dtype=_dtype_name(model),
            model_type=str(model.network.config.model_type),
            task=task.name,
            task_hash=task.hash,
            edits=task.simultaneous_edits,
            editor=record.editor,
            hyperparameters=record.hyperparameters,
            seed=record.seed,
            split=record.split,
            epsilon=epsilon,
            rule=rule,
            answers=record.answers,
            certificate=certificate,
            versions=record.versions,
        ),
    )


def _delta_from(tensors: Mapping[str, Tensor], manifest: Manifest, companions: Companions) -> Delta:
    companion = manifest.companion
    if manifest.memory is not None:
        surroundings = Surroundings(
            companions, lambda: load_tokenizer(manifest.base, manifest.base_revision)
        )
        return _MEMORIES[manifest.kind].restore(manifest.memory, tensors, surroundings)
    if companion is None:
        return _FROM_TENSORS[manifest.kind](tensors)
    change = _FROM_TENSORS[companion.kind](tensors)
    return EnsembleDelta(LogRatio(companions.recall(companion), change), companion.strength)


def _dtype_name(model: LanguageModel) -> Dtype:
    return TypeAdapter[Dtype](Dtype).validate_python(str(model.dtype).removeprefix("torch."))
