"""Training the senses that matter to the examples: what the editors of a Backpack share."""

from collections.abc import Collection, Iterator
from typing import Self

import torch
from pydantic import Field, model_validator

from tuner.backpack import BackpackForCausalLM, SenseOffsets
from tuner.deltas.senses import SenseDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors._training.loop import TrainedEditor, trainable_twin
from tuner.editors.senses.selection import SenseSelection, background_of, select_senses
from tuner.errors import ConfigError


class SenseEditor(TrainedEditor):
    """An editor that trains additive vectors for a few senses of a Backpack.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §5 and their code.
    """

    senses_per_example: int = Field(
        default=8, ge=1, description="Senses that each example may change; the union is trained."
    )
    selection: SenseSelection = Field(
        default=SenseSelection.ATTENTION,
        description="What says how much a sense matters: its attention weights, or the gradient.",
    )
    background_weight: float = Field(
        default=1.0,
        ge=0,
        description="How much use by general text, per block, counts against a sense (λ_s).",
    )

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return none: it changes no weights."""
        return ()

    @model_validator(mode="after")
    def _changes_no_weights(self) -> Self:
        if self.keep_share != 1 or self.truncated_rank is not None:
            raise ValueError(
                "keep_share = 1 and no truncated_rank must hold: only changes of weights have a "
                "share or a rank to keep, and these are of senses."
            )
        return self

    def train_senses(
        self,
        model: LanguageModel,
        examples: ExampleSet,
        aux: Auxiliary,
        *,
        seed: int,
    ) -> Iterator[tuple[SenseDelta, float]]:
        """Yield the change of the selected senses and the training loss after each epoch.

        Raises:
            ConfigError: the model is not a Backpack.
            EditError: the training diverged or ran out of memory.
        """
        base = check_backpack(model)
        # What general text uses is asked of the model before any batch, so once for all of them.
        origin = aux.origin or model
        background = background_of(
            check_backpack(origin), origin, aux.general, self.selection, aux.cache
        )
        pairs = select_senses(
            base,
            model,
            examples,
            background,
            selection=self.selection,
            per_example=self.senses_per_example,
            background_weight=self.background_weight,
        )
        network = trainable_twin(model, ())
        vectors = torch.zeros(len(pairs), base.config.n_embd, device=model.device)
        offsets = SenseOffsets(pairs, vectors, beneath=network.backpack.offsets)
        network.backpack.set_offsets(offsets)
        for loss in self.descend(network, [offsets.vectors], model, examples, aux, seed=seed):
            yield SenseDelta(pairs, offsets.vectors.detach().clone()), loss


def check_backpack(model: LanguageModel) -> BackpackForCausalLM:
    """Return the network of a Backpack.

    Raises:
        ConfigError: the model is none.
    """
    if not isinstance(model.network, BackpackForCausalLM):
        raise ConfigError(
            f"Only a Backpack has senses, and {model.id} is a "
            f"{model.network.config.model_type}. Use builtin:backpack, or another editor."
        )
    return model.network
