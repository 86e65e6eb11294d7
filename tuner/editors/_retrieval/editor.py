"""Editors that store edits as text and train a scope classifier to find the right one."""

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tuner.editing.companions import Companions
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.model import LanguageModel
from tuner.editing.model_names import ModelName
from tuner.editing.task import ExampleSet, LossKind, Task
from tuner.editors._retrieval.classifier import ScopeClassifier, ScopeForm
from tuner.editors._retrieval.classifier_training import Negatives, train_scope_classifier
from tuner.editors._retrieval.edit_text import EditText
from tuner.editors._training.amortised import Schedule
from tuner.editors._training.training_edits import check_training
from tuner.errors import ConfigError

_SAYS_TARGETS = (LossKind.LIKELIHOOD, LossKind.PREFER)


class ScopeEditor(Editor):
    """An editor whose memory is text, with a scope classifier trained on other edits.

    What is trained depends on the task's train/ and the settings, not on the edits or the base:
    trials that differ in the threshold alone share one training.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        "classifier": "gpt_neox",
        "classifier_learning_rate": 1e-2,
        "classifier_steps": 40,
    }
    deterministic: ClassVar[bool] = True  # training has a seed of its own, so that trials share it

    classifier: ModelName = Field(
        default="builtin:neox",
        description="What the classifier starts from: an encoder such as DistilBERT, or a causal "
        "language model; builtin:NAME, a folder, or a hub id.",
    )
    compares: Literal["embeddings", "texts"] = Field(
        default="embeddings",
        description="What the classifier compares: the embeddings of edit and prompt, or both "
        "texts in one pass (cross-attention), which costs a pass per stored edit.",
    )
    pooling: Literal["auto", "first", "last", "mean"] = Field(
        default="auto",
        description="Which token's state stands for a text, or the mean of all; auto is the mean "
        "for a causal model, and else the first.",
    )
    edit_form: Literal["auto", "joined", "separated"] = Field(
        default="auto",
        description="How the classifier reads an edit: as one text, or as `prompt [SEP] target "
        "[SEP]`; auto is the latter where embeddings of an encoder are compared, as published, "
        "and else the former.",
    )
    most_tokens: int = Field(
        default=64, ge=8, description="Tokens that the classifier reads of a text, from its end."
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="How sure the classifier must be of an edit."
    )
    joint: str = Field(
        default=" ",
        description="The separator between an edit and the prompt that it is read with.",
    )
    classifier_learning_rate: float = Field(
        default=1e-3, gt=0, lt=1, description="Adam's learning rate for the classifier."
    )
    classifier_steps: int = Field(
        default=300, ge=1, description="Optimiser steps for the classifier, at most."
    )
    hard_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How often the classifier learns from an edit's own out-of-scope rows, and "
        "not from prompts of other edits.",
    )
    all_pairs: bool | None = Field(
        default=None,
        description="Learn from all prompts of a step that are out of an edit's scope, and not "
        "from one per edit; by default with embeddings, where that costs nothing.",
    )
    warmup: int = Field(
        default=50,
        ge=0,
        description="Optimiser steps in which the learning rate rises to its value; the first "
        "steps at full rate would tear down what the network knows.",
    )
    edits_per_step: int = Field(default=10, ge=2, description="Edits per optimiser step.")
    check_every: int = Field(
        default=50, ge=1, description="Steps between two looks at the held-out edits."
    )
    patience: int = Field(
        default=10, ge=1, description="Looks without a gain after which a training ends."
    )
    held_out: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the training edits that decides when a training ends.",
    )
    gradient_clip: float = Field(
        default=100.0, gt=0, description="Norm to which a step's gradient is clipped."
    )
    training_seed: int = Field(
        default=0, ge=0, description="Seed of the trainings, so that trials share them."
    )

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return none: it changes no weights."""
        return ()

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        if self.batches != 1:
            raise ValueError(
                f"batches = 1 must hold, but got {self.batches}: a memory cannot be written into a "
                "model for the next batch. Add edits to a memory by `tuner memory`."
            )
        return self

    def check_task(self, task: Task) -> None:
        """Verify that a task has edits to train on, and says what should be said.

        Raises:
            ConfigError: it has none, or its loss asks for more than targets.
        """
        check_training(task.train, without_outside=True)
        _check_says_targets(task.loss)

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the classifier can be loaded; any base model will do.

        Raises:
            ConfigError: it cannot.
        """
        companions.load_encoder(self.classifier)

    def trained_classifier(self, aux: Auxiliary) -> ScopeClassifier:
        """Return the scope classifier, trained now or before.

        Raises:
            ConfigError: there is nothing to train on.
            EditError: the training diverged or ran out of memory.
        """
        cheap = self.compares == "embeddings"
        all_pairs = cheap if self.all_pairs is None else self.all_pairs
        encoder = aux.companions.load_encoder(self.classifier)
        published = cheap and not encoder.causal
        form = ScopeForm(
            compares=self.compares,
            pooling=self.pooling,
            most_tokens=self.most_tokens,
            separated=published if self.edit_form == "auto" else self.edit_form == "separated",
        )
        return train_scope_classifier(
            encoder,
            form,
            aux.training,
            Negatives(self.hard_share, all_pairs),
            self.schedule(self.classifier_learning_rate, self.classifier_steps),
            aux.cache,
        )

    def schedule(self, learning_rate: float, steps: int) -> Schedule:
        """Return how to train one of the networks."""
        return Schedule(
            learning_rate=learning_rate,
            steps=steps,
            warmup=self.warmup,
            edits_per_step=self.edits_per_step,
            check_every=self.check_every,
            patience=self.patience,
            gradient_clip=self.gradient_clip,
            held_out=self.held_out,
            seed=self.training_seed,
        )

    def stored(self, examples: ExampleSet) -> tuple[EditText, ...]:
        """Return the examples as they are stored.

        Raises:
            ConfigError: they say what should not be said, or only in comparison.
        """
        _check_says_targets(examples.loss)
        return tuple(EditText.of(row) for row in examples.rows)


def _check_says_targets(loss: LossKind) -> None:
    if loss not in _SAYS_TARGETS:
        raise ConfigError(
            f"A memory of edits as text says their targets; the loss {loss} asks for more. Use a "
            f"task with one of the losses {', '.join(_SAYS_TARGETS)}."
        )
