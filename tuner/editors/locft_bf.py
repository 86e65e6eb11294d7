"""LocFT-BF: one matrix, fine-tuned in mini-batches over all edits again and again."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, final

from pydantic import Field

from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.layers import OneLayerEditor
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors._training.loop import TrainedEditor


@final
class LocftBf(OneLayerEditor, TrainedEditor):
    """Trains the MLP's down-projection of one layer, breadth first.

    Breadth first means passes over all edits in mini-batches, rather than one edit after the
    other until it is learned. The published settings are the defaults here: Adam at a constant
    rate, the end of text learned, a mean over examples, no general text, no step for a batch that
    is learned already, an early end. Facts and prefixes can be added.

    Source: the code of LocFT-BF (ICLR 2026), whose layers are 22 of 32 in Llama-3-8B and 6 of 28
    in Qwen2.5-7B.
    """

    # One batch holds every example, so only what the prefixes are depends on the seed.
    smoke_settings: ClassVar[Mapping[str, object]] = {
        "learning_rate": 1e-3,
        "epochs": 2,
        "depth": 0.5,
        "prefixes": 2,
    }

    depth: float = Field(
        default=0.71, ge=0, le=1, description="The edited layer, as a fraction of all layers."
    )
    learning_rate: float = Field(
        default=5e-4, gt=0, lt=1, description="Adam's learning rate in epoch one."
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="constant", description="How the learning rate goes on from epoch to epoch."
    )
    epochs: int = Field(default=25, ge=1, le=1000, description="Most passes over the examples.")
    batch_size: int = Field(default=100, ge=1, description="Examples per optimiser step.")
    kl_weight: float = Field(
        default=0.0, ge=0, description="Weight of KL(base‖edited), summed over one block."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Adam's decay rates.")
    skip_below: float | None = Field(
        default=1e-2,
        gt=0,
        description="Make no step of the optimiser for a batch whose mean loss is below this, for "
        "losses that end at 0 (likelihood, balance).",
    )
    stop_below: float | None = Field(
        default=1e-2,
        gt=0,
        description="End after an epoch whose mean loss is below this, for losses that end at 0 "
        "(likelihood, balance).",
    )
    end_of_text: bool = Field(
        default=True,
        description="Learn that the text ends behind the target, where the loss is likelihood.",
    )

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change of the one matrix after each epoch.

        Raises:
            EditError: the training diverged or ran out of memory.
        """
        layer = self.layer_of(model)
        name = f"{model.architecture.mlp_modules(layer)[-1]}.weight"
        yield from self.train_in_full([name], model, examples, aux, seed=seed)
