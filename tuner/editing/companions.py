"""The small models that stand beside the one that is edited, each loaded once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from tuner.editing.encoder import Encoder, load_encoder
from tuner.editing.model import Device, Dtype, LanguageModel, load_model
from tuner.errors import BaseMismatch


class ModelReference(BaseModel):
    """What a stored delta must say of a model that it brings along, to find it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="Model id: builtin:NAME, a folder, or a hub id.")
    revision: str | None
    fingerprint: str = Field(description="Hash of its weights, dtype and tokenizer.")
    dtype: Dtype


@final
class Companion(ModelReference):
    """The small model of an ensemble."""

    kind: str = Field(description="The kind of delta that the tensors are, which changes it.")
    strength: float = Field(
        allow_inf_nan=False, description="How much of that reaches the base (β)."
    )


@final
@dataclass
class Companions:
    """Loads small models and keeps them, so that many trials share them."""

    device: Device = "auto"
    _loaded: dict[tuple[str, str | None, Dtype], LanguageModel] = field(default_factory=dict)
    _encoders: dict[tuple[str, str | None], Encoder] = field(default_factory=dict)

    def load(
        self, id: str, *, revision: str | None = None, dtype: Dtype = "float32"
    ) -> LanguageModel:
        """Return the model called `builtin:…`, in a local folder, or on the Hugging Face hub.

        Raises:
            ConfigError: it cannot be loaded.
        """
        key = (id, revision, dtype)
        if key not in self._loaded:
            self._loaded[key] = load_model(id, revision=revision, dtype=dtype, device=self.device)
        return self._loaded[key]

    def load_encoder(self, id: str, *, revision: str | None = None) -> Encoder:
        """Return the encoder called so, in single precision.

        Raises:
            ConfigError: it cannot be loaded.
        """
        key = (id, revision)
        if key not in self._encoders:
            self._encoders[key] = load_encoder(id, revision=revision, device=self.device)
        return self._encoders[key]

    def recall(self, companion: ModelReference) -> LanguageModel:
        """Return the very model that a delta was made with.

        Raises:
            ConfigError: it cannot be loaded.
            BaseMismatch: what is found under its name is another one.
        """
        model = self.load(companion.id, revision=companion.revision, dtype=companion.dtype)
        _check_same(model.fingerprint, companion)
        return model

    def recall_encoder(self, companion: ModelReference) -> Encoder:
        """Return the very encoder that a delta was made with.

        Raises:
            ConfigError: it cannot be loaded.
            BaseMismatch: what is found under its name is another one.
        """
        encoder = self.load_encoder(companion.id, revision=companion.revision)
        _check_same(encoder.fingerprint, companion)
        return encoder

    @property
    def fingerprints(self) -> dict[str, str]:
        """The hash of each model that has been loaded, by the words for what was asked for."""
        models = {
            _words(id, revision, dtype): model.fingerprint
            for (id, revision, dtype), model in self._loaded.items()
        }
        encoders = {
            _words(id, revision, "as an encoder"): encoder.fingerprint
            for (id, revision), encoder in self._encoders.items()
        }
        return models | encoders

    def check_unchanged(self) -> None:
        """Verify that the models still hold the bits they were loaded with.

        Raises:
            EditError: an editor changed one.
        """
        for model in self._loaded.values():
            model.check_unchanged()
        for encoder in self._encoders.values():
            encoder.check_unchanged()


@final
@dataclass(frozen=True)
class Surroundings:
    """Where a stored delta finds what it does not hold itself."""

    companions: Companions
    """The models that it brings along."""
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    """The base model's tokenizer, loaded when it is asked for."""


def _words(id: str, revision: str | None, form: str) -> str:
    return f"{id} ({form})" if revision is None else f"{id} at {revision} ({form})"


def _check_same(fingerprint: str, companion: ModelReference) -> None:
    if fingerprint != companion.fingerprint:
        raise BaseMismatch(
            f"This delta brings along {companion.id} ({companion.dtype}, fingerprint "
            f"{companion.fingerprint[:12]}…), but what is found there now has the fingerprint "
            f"{fingerprint[:12]}…. Put the same weights back."
        )
