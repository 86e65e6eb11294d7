"""A large model's logits plus what sense finetuning changed in a small Backpack's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from pydantic import Field, model_validator

from tuner.deltas.ensemble.ensemble_delta import EnsembleDelta
from tuner.deltas.ensemble.log_ratio import LogRatio
from tuner.deltas.senses import SenseDelta
from tuner.editing.companions import Companions
from tuner.editing.editor import Auxiliary, Carried, EpochEdit
from tuner.editing.model import LanguageModel, share_tokens
from tuner.editing.model_names import ModelName
from tuner.editing.task import ExampleSet
from tuner.editors.senses.training import SenseEditor, check_backpack
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class _Senses(Carried):
    """What earlier batches changed in the small model."""

    delta: SenseDelta


@final
class Ensemble(SenseEditor):
    """Adds to a model's logits what an edit changes in a small Backpack's (Hewitt et al. 2024).

    The senses of the small model are trained on the examples; the large one only reads. How much
    of the change is added, β, is the strength of the delta, 1 as it is made: the rule `fitted`
    lowers it until the large model keeps its budget.

    Source: arXiv:2402.06155, §6, where β is the first of 1.0, 0.9, … within the budget.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        "learning_rate": 0.1,
        "epochs": 2,
        "small": "backpack",
    }

    small: ModelName = Field(
        default="builtin:backpack",
        description="The Backpack: builtin:NAME, a folder, or a hub id. It must share the "
        "tokenizer of the model.",
    )

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        if self.batches != 1:
            raise ValueError(
                f"batches = 1 must hold, but got {self.batches}: an ensemble cannot be written "
                "into a model for the next batch."
            )
        return self

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the small model has senses and shares the model's tokenizer.

        Raises:
            ConfigError: it has not, does not, or cannot be loaded.
        """
        self._small_for(model, companions)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the ensemble after each epoch of training the small model's senses.

        Raises:
            ConfigError: the small model is none for this model, or for blocks of this length.
            EditError: the training diverged or ran out of memory.
        """
        small = self._small_for(model, aux.companions)
        length = aux.general.blocks.shape[1]
        if length > small.context_length:
            raise ConfigError(
                f"The blocks of general text have {length} tokens, and {small.id} reads "
                f"{small.context_length} at most. Use a small model with a longer context."
            )
        earlier = aux.carried.delta if isinstance(aux.carried, _Senses) else None
        current = small if earlier is None else small.after(earlier)
        # The senses are the small model's, and so is all that a sequence begins with.
        beside = replace(aux, origin=small)
        for own, loss in self.train_senses(current, examples, beside, seed=seed):
            delta = own if earlier is None else earlier.plus(own)
            yield EpochEdit(EnsembleDelta(LogRatio(small, delta)), loss, _Senses(delta))

    def _small_for(self, model: LanguageModel, companions: Companions) -> LanguageModel:
        small = companions.load(self.small)
        check_backpack(small)
        if not share_tokens(model.tokenizer, small.tokenizer):
            raise ConfigError(
                f"An ensemble adds the logits of two models token by token: {model.id} and "
                f"{small.id} must share a tokenizer, and they do not. Give another `small`."
            )
        if model.end_id >= small.network.config.vocab_size:
            raise ConfigError(
                f"The end-of-text token of {model.id} ({model.end_id}) must be known to "
                f"{small.id}, which knows {small.network.config.vocab_size} tokens. "
                "Give another `small`."
            )
        return small
