"""Where a delta comes from and what is known about it: what stands in `delta.json`."""

from typing import Any, Literal, Self, final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tuner.deltas.registry import find_kind
from tuner.editing.companions import Companion
from tuner.editing.delta import AdditiveDelta
from tuner.editing.model import Dtype, LanguageModel
from tuner.errors import BaseMismatch
from tuner.evaluation.deviation.budget import Certificate, epsilon_name
from tuner.trial.records import Answer, Rule, SplitName
from tuner.validation import describe_problems


@final
class Manifest(BaseModel):
    """Where a delta comes from and what is known about it: `delta.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: str = Field(description="The kind of delta, as `tuner.deltas.registry` knows it.")
    companion: Companion | None = Field(
        default=None, description="The small model that an ensemble brings along."
    )
    memory: SerializeAsAny[BaseModel] | None = Field(
        default=None,
        description="What a memory, or a kind from outside, needs beside its tensors.",
    )
    base: str = Field(description="Model id: builtin:NAME, a folder, or a hub id.")
    base_revision: str | None
    base_fingerprint: str = Field(description="Hash of the base's weights, dtype and tokenizer.")
    base_dtype: Dtype
    model_type: str
    task: str
    task_hash: str
    task_path: str | None = Field(
        default=None,
        exclude_if=lambda path: path is None,
        description="Where the task lay, if it does not travel with tuner.",
    )
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

    @field_validator("kind")
    @classmethod
    def _is_at_hand(cls, kind: str) -> str:
        find_kind(kind)
        return kind

    @field_validator("memory", mode="plain")
    @classmethod
    def _is_of_its_kind(cls, value: object, info: ValidationInfo) -> BaseModel | None:
        kind = info.data.get("kind")
        # Without a kind, what is wrong with that is what must be told.
        if value is None or kind is None:
            return None
        expected = find_kind(kind).state_type
        if expected is None or expected is Companion:
            raise ValueError(f"a delta of kind {kind!r} needs no memory, but has one.")
        try:
            return expected.model_validate(value)
        except ValidationError as error:
            raise ValueError(describe_problems(error)) from None

    @model_validator(mode="after")
    def _has_its_state(self) -> Self:
        expected = find_kind(self.kind).state_type
        if (expected is Companion) != (self.companion is not None):
            raise ValueError(
                f"an ensemble has a companion and nothing else has one, but kind is {self.kind!r} "
                f"and companion is {'absent' if self.companion is None else 'given'}."
            )
        if self.memory is None and expected not in (None, Companion):
            raise ValueError(f"a delta of kind {self.kind!r} needs a memory, but it is absent.")
        return self

    @property
    def state(self) -> BaseModel | None:
        """What must be known of the delta beside its tensors, if anything."""
        return self.memory or self.companion

    def with_state(self, state: BaseModel | None) -> "Manifest":
        """Return the manifest of a delta of the same kind in another state."""
        return self.model_copy(update=state_fields(state))

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
        return not issubclass(find_kind(self.kind), AdditiveDelta)

    def check_base(self, model: LanguageModel) -> None:
        """Verify that `model` is the very base that the delta was made from.

        Raises:
            BaseMismatch: its weights, dtype or tokenizer differ.
        """
        if model.fingerprint != self.base_fingerprint:
            raise BaseMismatch(
                f"This delta was made from {self.base} "
                f"({self.base_dtype}, fingerprint {self.base_fingerprint[:12]}…) "
                f"and cannot be used with {model.id} ({dtype_name(model)}, fingerprint "
                f"{model.fingerprint[:12]}…). Load the same weights in the same dtype."
            )


def state_fields(state: BaseModel | None) -> dict[str, BaseModel | None]:
    """Return the fields of a manifest that say what must be known of a delta beside its tensors.

    That of an ensemble has a field of its own.
    """
    of_ensemble = isinstance(state, Companion)
    return {"companion": state if of_ensemble else None, "memory": None if of_ensemble else state}


def dtype_name(model: LanguageModel) -> Dtype:
    """Return the precision of a model's weights, as a manifest writes it."""
    return TypeAdapter[Dtype](Dtype).validate_python(str(model.dtype).removeprefix("torch."))
