"""MEND: networks, trained on other edits, that make a gradient into an edit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from pydantic import Field

from tuner.editing.companions import Companions
from tuner.editing.delta import WeightDelta
from tuner.editing.editor import Auxiliary, Carried, Editor, EpochEdit
from tuner.editing.likelihood import MeanOver, encode_examples
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, Task
from tuner.editors._locate_then_edit.layer_band_editor import factored
from tuner.editors._training.loop import trainable_twin
from tuner.editors._training.training_edits import check_training
from tuner.editors.mend.network import GradientNetwork
from tuner.editors.mend.token_gradients import token_gradients
from tuner.editors.mend.training import (
    GradientSettings,
    edited_maps,
    gradient_network,
)


@final
@dataclass(frozen=True)
class _Trained(Carried):
    """The networks of the model before all batches."""

    network: GradientNetwork


@final
class Mend(Editor):
    """Changes the last MLPs by the gradient of the edit, as networks have learned to transform it.

    The networks are trained once on the task's `train/` split and kept: an edit is then one
    gradient and one pass through them, and its rank in each matrix is the number of its tokens.

    Source: Mitchell et al. 2022 (arXiv:2110.11309), with the details of their code, but for the
    sign of the step and for the defaults of those fields that say what was published: ours are
    for small models and a few hundred training edits.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        "learning_rate": 1e-4,
        "step_size_rate": 1e-3,
        "rank": 8,
        "edits_per_step": 2,
        "accumulation": 1,
        "training_steps": 10,
        "check_every": 2,
    }
    deterministic: ClassVar[bool] = True  # training has a seed of its own, so that trials share it

    layers: int = Field(
        default=3, ge=1, description="How many of the last layers are edited, all MLP maps of each."
    )
    rank: int = Field(
        default=256,
        ge=1,
        description="Rank of the networks' own maps (published: 1920, or inputs plus outputs "
        "where those are fewer).",
    )
    step_size: float = Field(
        default=1e-3,
        gt=0,
        description="Size of an edit's step before training, for every matrix (published: 1e-4).",
    )
    edit_weight: float = Field(
        default=0.1, gt=0, description="Weight of the in-scope loss beside that of the rest."
    )
    mean_over: MeanOver = Field(
        default="tokens",
        description="Whether the edits of a step count by their targets' tokens, as published, or "
        "alike.",
    )
    general_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of KL(base‖edited) on general text, per token; as published none.",
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="Adam's learning rate for the networks (published: 1e-6).",
    )
    step_size_rate: float = Field(
        default=1e-4, gt=0, lt=1, description="Adam's learning rate for the step sizes."
    )
    training_steps: int = Field(
        default=100,
        ge=1,
        description="Most steps of the optimiser when the networks are trained (published: "
        "500,000 sets of edits, 50,000 steps).",
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        description="Sets of edits whose gradients one such step adds up (published: 10).",
    )
    clip: float = Field(default=100.0, gt=0, description="Greatest norm of such a step's gradient.")
    edits_per_step: int | None = Field(
        default=None,
        ge=1,
        description="Edits made at once in training; default as many as are to be made then, if "
        "the training split has them.",
    )
    held_out: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the training edits that tell when to stop (published: 500 edits of "
        "a validation set).",
    )
    check_every: int = Field(
        default=20, ge=1, description="Steps after which the held-out edits are looked at."
    )
    patience: int = Field(
        default=40,
        ge=1,
        description="Steps without a better look after which training ends (published: 20,000 "
        "sets of edits, 2,000 steps).",
    )
    training_seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the networks and their training, apart from a trial's own.",
    )

    def check_task(self, task: Task) -> None:
        """Verify that a task has edits to train on.

        Raises:
            ConfigError: it has none, or they lack rows in or out of their scope.
        """
        check_training(task.train, without_outside=self.general_weight > 0)

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the last layers have an MLP of linear maps.

        Raises:
            ConfigError: they have not.
        """
        edited_maps(model, self.layers)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change, once.

        `seed` has no part in it: networks are trained by `training_seed`, so that trials share
        them. In a chain of batches they are those of the model before all of them.

        Raises:
            ConfigError: no training edits are given, or they lack rows in or out of their scope.
            TaskError: a row exceeds the model's context.
            EditError: the training diverged or ran out of memory.
        """
        training = check_training(aux.training, without_outside=self.general_weight > 0)
        if isinstance(aux.carried, _Trained):
            network = aux.carried.network
        else:
            settings = self._settings(examples)
            network = gradient_network(model, training, aux.general, settings, aux.cache)
        rows = encode_examples(model, examples.rows)
        maps = tuple(edited_maps(model, self.layers))
        precise = trainable_twin(model, ())
        gradients = token_gradients(
            precise, maps, examples.loss, rows, model.end_id, self.mean_over
        )
        with torch.no_grad():
            changes = network(gradients)
        transposed = model.architecture.transposed
        yield EpochEdit(
            WeightDelta(
                {
                    f"{name}.weight": factored(change, transposed=transposed)
                    for name, change in changes.items()
                }
            ),
            carried=_Trained(network),
        )

    def _settings(self, examples: ExampleSet) -> GradientSettings:
        return GradientSettings(
            layers=self.layers,
            rank=self.rank,
            step_size=self.step_size,
            learning_rate=self.learning_rate,
            step_size_rate=self.step_size_rate,
            edit_weight=self.edit_weight,
            general_weight=self.general_weight,
            edits_per_step=self.edits_per_step or len(examples),
            accumulation=self.accumulation,
            clip=self.clip,
            training_steps=self.training_steps,
            patience=self.patience,
            check_every=self.check_every,
            held_out=self.held_out,
            seed=self.training_seed,
            mean_over=self.mean_over,
        )
