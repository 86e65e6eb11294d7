"""A delta with all that is needed to trust and use it, as a folder of safetensors and JSON."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, final

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tuner.deltas.ensemble.ensemble_delta import EnsembleDelta
from tuner.deltas.ensemble.log_ratio import LogRatio
from tuner.deltas.memory.memory import MemoryDelta, MemoryState, Surroundings
from tuner.deltas.senses import SenseDelta
from tuner.editing.companions import Companion, Companions
from tuner.editing.delta import AdditiveDelta, Delta, WeightDelta
from tuner.editing.model import Dtype, LanguageModel, load_tokenizer
from tuner.editing.task import Task
from tuner.editors.grace.memory import GraceDelta, GraceState
from tuner.editors.look_up.memory import LookUpDelta, LookUpState
from tuner.editors.retrieve_and_prompt.memory import RetrievalDelta, RetrievalState
from tuner.editors.serac.memory import SeracDelta, SeracState
from tuner.editors.wise.memory import WiseDelta, WiseState
from tuner.errors import BaseMismatch, ConfigError, DiskError
from tuner.evaluation.deviation.budget import Certificate, epsilon_name
from tuner.evaluation.identity import hash_of_parts, stored_beside, tensors_hash
from tuner.files.atomic_file import (
    cannot_write,
    remove_abandoned_drafts,
    whole_folder,
    write_tensors,
    write_text,
)
from tuner.files.json_file import validate_json
from tuner.files.text_file import is_file, is_taken, open_file, read_text_if_any, reason
from tuner.trial.records import Answer, Rule, SplitName
from tuner.trial.run import TrialResult
from tuner.validation import show_path

Kind = Literal[
    "weights", "senses", "ensemble", "look_up", "grace", "wise", "retrieve_and_prompt", "serac"
]
MemoryRecords: TypeAlias = Annotated[
    LookUpState | GraceState | WiseState | RetrievalState | SeracState,
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
_WAITING = "delta-" + "[0-9a-f]" * 16 + ".safetensors"
_STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)


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
    epsilon: float = Field(gt=0, lt=1)
    rule: Rule
    answers: tuple[Answer, ...] = Field(description="What the trial gave for every budget.")
    certificate: Certificate | None = Field(
        default=None, description="What fresh text says of this delta and its budget."
    )
    further_certificates: tuple[Certificate, ...] = Field(
        default=(),
        exclude_if=lambda certificates: not certificates,
        description="What it says of other budgets.",
    )
    tensors_hash: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        exclude_if=lambda value: value is None,
        description="Hash of the tensors; written with the bundle, None in those of old.",
    )
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

    @cached_property
    def tensors_hash(self) -> str:
        """The hash of the tensors as they are."""
        return tensors_hash(self.tensors)

    @property
    def delta_hash(self) -> str:
        """The hash of the delta as it is, by which a certificate names it."""
        manifest = self.manifest
        beside = manifest.memory or manifest.companion
        return hash_of_parts(manifest.kind, self.tensors_hash, beside)

    def doubt(self, certificate: Certificate) -> str | None:
        """Return why a certificate says nothing sure of this delta, or None if it does."""
        return certificate.doubt(self.delta_hash, self.manifest.base_fingerprint)

    def certified(self, fresh: Certificate) -> tuple["StoredBundle", tuple[str, ...]]:
        """Return the bundle with a fresh certificate, and what becomes of earlier ones, in words.

        It takes the place of those for the same budget and of those that it contradicts; others
        stay beside it.
        """
        manifest, told = self.manifest, []
        kept: list[Certificate] = []
        for earlier in (manifest.certificate, *manifest.further_certificates):
            if earlier is None:
                continue
            if fresh.contradicts(earlier):
                told.append(
                    f"This contradicts the bundle's certificate, which says {_stated(earlier)}. "
                    "The fresh verdict takes its place."
                )
            elif earlier.epsilon == fresh.epsilon:
                told.append(f"It takes the place of a certificate that says {_stated(earlier)}.")
            else:
                kept.append(earlier)
        known = sorted((fresh, *kept), key=lambda one: one.epsilon != manifest.epsilon)
        first = known.pop(0) if known[0].epsilon == manifest.epsilon else None
        changed = manifest.model_copy(
            update={"certificate": first, "further_certificates": tuple(known)}
        )
        return StoredBundle(self.tensors, changed), tuple(told)

    def save(self, folder: str | Path) -> Path:
        """Write the bundle and return its folder.

        Whatever happens meanwhile, the folder holds the whole new bundle, or what was there
        before. Other files in it stay.

        Raises:
            ConfigError: the folder exists and is not a bundle.
            DiskError: it cannot be written.
        """
        check_place(folder)
        # What a link points to is written, not the link.
        shown, target = Path(folder).absolute(), Path(os.path.realpath(folder))
        manifest = self.manifest.model_copy(update={"tensors_hash": self.tensors_hash})
        text = f"{manifest.model_dump_json(indent=2)}\n"
        if not is_file(target / MANIFEST_FILE):
            with whole_folder(target) as draft:
                write_tensors(draft / TENSORS_FILE, self.tensors)
                write_text(draft / MANIFEST_FILE, text)
            return shown
        remove_abandoned_drafts(target)
        self._replace(target, text)
        return shown

    def _replace(self, target: Path, manifest: str) -> None:
        """Write the bundle over another one.

        The manifest names the tensors that belong to it, so it decides which bundle this is: new
        tensors wait beside the old ones until it is there, and `load` finds them in either place.
        """
        tensors, waiting = target / TENSORS_FILE, target / _waiting(self.tensors_hash)
        try:
            there = tensors_hash(_read_tensors(tensors)) == self.tensors_hash
        except ConfigError:
            there = False
        try:
            if not there:
                write_tensors(waiting, self.tensors)
            write_text(target / MANIFEST_FILE, manifest)
        except DiskError:
            waiting.unlink(missing_ok=True)
            raise
        try:
            if not there:
                waiting.replace(tensors)
            for left in target.glob(_WAITING):
                left.unlink()
        except OSError as error:
            raise cannot_write(tensors, error) from None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the bundle in `folder`.

        Raises:
            ConfigError: the folder is not a bundle, or is damaged.
        """
        source = Path(folder)
        try:
            text = read_text_if_any(source / MANIFEST_FILE)
        except ConfigError as error:
            raise _damaged(source, error) from None
        if text is None:
            raise _missing(source, MANIFEST_FILE)
        # Its complaints are one line each and show at most the beginning of a value.
        where = f"The bundle {show_path(source)} is damaged: {MANIFEST_FILE}"
        manifest = validate_json(text, Manifest, where)
        waiting = None if manifest.tensors_hash is None else _waiting(manifest.tensors_hash)
        found = None
        # A process that writes the bundle now may just move the tensors from there to here.
        for name in (TENSORS_FILE, waiting, TENSORS_FILE):
            if name is None or not os.path.lexists(source / name):
                continue
            try:
                found = _read_tensors(source / name)
            except ConfigError as error:
                raise _damaged(source, error) from None
            # That hash is the files' business: it is made anew whenever they are written.
            bundle = cls(found, manifest.model_copy(update={"tensors_hash": None}))
            if manifest.tensors_hash in (None, bundle.tensors_hash):
                return bundle
        if found is None:
            raise _missing(source, TENSORS_FILE)
        raise _damaged(
            source,
            f"{TENSORS_FILE} does not hold the tensors that {MANIFEST_FILE} belongs to, by their "
            "hash. One of them was changed or replaced: take both from the same place.",
        )

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

    @cached_property
    def stored(self) -> StoredBundle:
        """The bundle as it is stored."""
        return StoredBundle(self.delta.tensors(), self.manifest)

    def save(self, folder: str | Path) -> Path:
        """Write the bundle and return its folder.

        Whatever happens meanwhile, the folder holds the whole new bundle, or what was there
        before. Other files in it stay.

        Raises:
            ConfigError: the folder exists and is not a bundle.
            DiskError: it cannot be written.
        """
        return self.stored.save(folder)

    @classmethod
    def load(cls, folder: str | Path, companions: Companions | None = None) -> "Bundle":
        """Return the bundle in `folder`.

        The models that its delta brings along are loaded through `companions`, or else for
        themselves.

        Raises:
            ConfigError: the folder is not a bundle, or is damaged, or such a model cannot be
                loaded.
            BaseMismatch: such a model is another than the one the delta was made with.
        """
        return StoredBundle.load(folder).open(companions)

    def check_base(self, model: LanguageModel) -> None:
        """Verify that `model` is the very base that the delta was made from, and that it fits.

        Raises:
            BaseMismatch: its weights, dtype or tokenizer differ, or the delta changes what it
                does not have.
        """
        self.manifest.check_base(model)
        # Put in and taken out once, so that what does not fit is told before anything is measured.
        with model.edited(self.delta):
            pass


def check_place(folder: str | Path) -> None:
    """Verify that a bundle may be written to `folder`: nothing is there, or a bundle.

    Raises:
        ConfigError: it is something else.
    """
    target = Path(os.path.realpath(folder))
    try:
        used = is_taken(target)
    except OSError as error:
        raise ConfigError(f"{show_path(folder)} cannot be written: {reason(error)}.") from None
    if used and not is_file(target / MANIFEST_FILE):
        raise ConfigError(f"{show_path(folder)} exists and is not a bundle; choose another folder.")


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
    record, beside = result.record, stored_beside(answer.delta)
    return Bundle(
        answer.delta,
        Manifest(
            kind=TypeAdapter[Kind](Kind).validate_python(answer.delta.kind),
            companion=beside if isinstance(beside, Companion) else None,
            memory=beside if isinstance(beside, MemoryState) else None,
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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file, all of them finite.

    Raises:
        ConfigError: it cannot be read, or holds what no delta holds.
    """
    try:
        with open_file(path):
            tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error}.") from None
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        # What the header says of a tensor is not something that torch knows.
        raise ConfigError(f"{path.name}: cannot be read: {type(error).__name__}.") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _STORED:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(f"{path.name}: no delta holds {kind}, but {show_path(name)} does.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{path.name}: {show_path(name)} holds NaN or infinite values.")
    return tensors


def _waiting(tensors_hash: str) -> str:
    """Return the name of tensors whose manifest is not there yet."""
    return f"delta-{tensors_hash[:16]}.safetensors"


def _damaged(folder: Path, why: object) -> ConfigError:
    return ConfigError(f"The bundle {show_path(folder)} is damaged: {why}")


def _missing(folder: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{show_path(folder)} is not a bundle: {name} is missing. A bundle holds {MANIFEST_FILE} "
        f"and {TENSORS_FILE}."
    )


def _stated(certificate: Certificate) -> str:
    return (
        f"{certificate.verdict.value} for ε={epsilon_name(certificate.epsilon)} at "
        f"{certificate.deviation.confidence:.5g} confidence, on {certificate.corpus!r}"
    )


def _dtype_name(model: LanguageModel) -> Dtype:
    return TypeAdapter[Dtype](Dtype).validate_python(str(model.dtype).removeprefix("torch."))
