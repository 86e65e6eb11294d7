"""A delta with all that is needed to trust and use it, as a folder of safetensors and JSON."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self, final

from torch import Tensor

from tuner.bundle.files import read_bundle, write_bundle
from tuner.bundle.manifest import Manifest, dtype_name, state_fields
from tuner.deltas.registry import check_storable, find_kind, kind_of
from tuner.editing.companions import Companions, Surroundings
from tuner.editing.delta import Delta
from tuner.editing.model import LanguageModel, load_tokenizer
from tuner.editing.task import Task
from tuner.editing.task_folder import resolved_task
from tuner.evaluation.deviation.budget import Certificate, epsilon_name
from tuner.evaluation.identity import hash_of_parts, tensors_hash
from tuner.trial.records import Rule
from tuner.trial.result import TrialResult


@final
@dataclass(frozen=True)
class StoredBundle:
    """A bundle as it lies on disk: to read or to copy it, no model is needed."""

    tensors: Mapping[str, Tensor]
    manifest: Manifest
    digest: str | None = field(default=None, repr=False, compare=False)
    """The hash of the tensors where it is known: there may be gigabytes of them."""

    @cached_property
    def tensors_hash(self) -> str:
        """The hash of the tensors as they are."""
        return tensors_hash(self.tensors) if self.digest is None else self.digest

    @property
    def delta_hash(self) -> str:
        """The hash of the delta as it is, by which a certificate names it."""
        return hash_of_parts(self.manifest.kind, self.tensors_hash, self.manifest.state)

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
        return StoredBundle(self.tensors, changed, self.tensors_hash), tuple(told)

    def save(self, folder: str | Path) -> Path:
        """Write the bundle and return its folder.

        Whatever happens meanwhile, the folder holds the whole new bundle, or what was there
        before. Other files in it stay.

        Raises:
            ConfigError: the folder exists and is not a bundle.
            DiskError: it cannot be written.
        """
        return write_bundle(folder, self.manifest, self.tensors, self.tensors_hash)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the bundle in `folder`.

        Raises:
            ConfigError: the folder is not a bundle, or is damaged, or its kind of delta is not at
                hand (see `tuner.deltas.registry`).
        """
        manifest, tensors, digest = read_bundle(folder)
        return cls(tensors, manifest, digest)

    def open(self, companions: Companions | None = None) -> "Bundle":
        """Return the bundle with its delta.

        The models that the delta brings along are loaded through `companions`, or else for
        themselves.

        Raises:
            ConfigError: the tensors do not fit the manifest, or such a model cannot be loaded.
            BaseMismatch: such a model is another than the one the delta was made with.
        """
        manifest = self.manifest
        surroundings = Surroundings(
            companions or Companions(),
            lambda: load_tokenizer(manifest.base, manifest.base_revision),
        )
        kind = find_kind(manifest.kind)
        return Bundle(kind.restore(manifest.state, self.tensors, surroundings), manifest)


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


def make_bundle(
    model: LanguageModel,
    task: Task,
    result: TrialResult,
    epsilon: float,
    *,
    rule: Rule = Rule.FITTED,
    certificate: Certificate | None = None,
    task_path: str | None = None,
) -> Bundle | None:
    """Return the bundle of a trial's answer, or None where the answer is the base model.

    `task_path` is where the task was loaded from, so that the bundle can be judged on it again.

    Raises:
        ConfigError: the delta is of a kind that no bundle can hold.
        EditError: the trial failed.
        KeyError: the trial was not run with this budget and rule.
    """
    answer = result.at(epsilon, rule)
    if answer.delta is None:
        return None
    check_storable(answer.delta)
    record = result.record
    # What travels with tuner is found by its name.
    place = None if task_path is None else resolved_task(task_path)
    return Bundle(
        answer.delta,
        Manifest(
            kind=kind_of(answer.delta),
            **state_fields(answer.delta.state),
            base=model.id,
            base_revision=model.revision,
            base_fingerprint=model.fingerprint,
            base_dtype=dtype_name(model),
            model_type=str(model.network.config.model_type),
            task=task.name,
            task_hash=task.hash,
            task_path=place if place is not None and os.path.isabs(place) else None,
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


def _stated(certificate: Certificate) -> str:
    return (
        f"{certificate.verdict.value} for ε={epsilon_name(certificate.epsilon)} at "
        f"{certificate.deviation.confidence:.5g} confidence, on {certificate.corpus!r}"
    )
