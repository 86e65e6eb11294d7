"""SERAC: a trained scope classifier and a counterfactual model beside the base."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, final

from pydantic import Field

from tuner.deltas.memory.memory import CarriedMemory
from tuner.editing.companions import Companions
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.likelihood import MeanOver
from tuner.editing.model import LanguageModel, share_tokens
from tuner.editing.model_names import ModelName
from tuner.editing.task import ExampleSet
from tuner.editors._retrieval.editor import ScopeEditor
from tuner.editors._retrieval.scope import Scope
from tuner.editors.serac.counterfactual import CounterfactualSettings, train_counterfactual
from tuner.editors.serac.memory import SeracDelta
from tuner.errors import ConfigError


@final
class Serac(ScopeEditor):
    """Stores edits as text; in their scope a small trained model answers (Mitchell et al. 2022).

    Classifier and counterfactual model share no weight and are trained apart, on other edits.
    Published: learning rates of 1e-5, 10 edits per step, clipping at 100, a threshold of 0.5.

    Source: arXiv:2206.06520 and its code. There is no published form for causal models; here the
    classifier sees the prompt alone, so that a target cannot leak into the route.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        **ScopeEditor.smoke_settings,
        "counterfactual": "gpt_neox",
        "counterfactual_learning_rate": 1e-2,
        "counterfactual_steps": 20,
    }

    counterfactual: ModelName = Field(
        default="builtin:neox",
        description="What the counterfactual model starts from: builtin:NAME, a folder, or a hub "
        "id. It must share the tokenizer of the model.",
    )
    counterfactual_learning_rate: float = Field(
        default=1e-3, gt=0, lt=1, description="Adam's learning rate for the counterfactual model."
    )
    counterfactual_steps: int = Field(
        default=800, ge=1, description="Optimiser steps for the counterfactual model, at most."
    )
    unlikelihood: bool = Field(
        default=True,
        description="Where a training row has a contrast, learn that the token with which it parts "
        "from the target is unlikely.",
    )
    renamed_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="How often the counterfactual model is trained with another target and "
        "contrast in an edit and its rows, so that it reads edits and learns none by heart.",
    )
    rows_per_edit: int = Field(
        default=2,
        ge=1,
        description="Rows in an edit's scope that a step of the counterfactual model learns from, "
        "beside the edit: claims that differ in a name alone teach to compare.",
    )
    prompt_weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the tokens of prompts that repeat what their edit says, in the "
        "counterfactual model's training: what can be said again can be recognised.",
    )

    mean_over: MeanOver = Field(
        default="tokens",
        description="Whether the counterfactual model's answers count by their tokens, as "
        "published, or each row alike.",
    )

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that classifier and counterfactual model can be loaded and fit the model.

        Raises:
            ConfigError: they cannot, or the counterfactual model has another tokenizer.
        """
        super().check_model(model, companions)
        self._small_for(model, companions)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the memory, once.

        Raises:
            ConfigError: there is nothing to train on, the examples do not say targets, or the
                counterfactual model does not fit.
            EditError: a training diverged or ran out of memory.
        """
        stored = self.stored(examples)
        match aux.carried:
            case CarriedMemory(SeracDelta() as earlier):
                memory = earlier.with_edits(examples.rows)
                yield EpochEdit(memory, carried=CarriedMemory(memory))
                return
        scope = Scope(stored, self.trained_classifier(aux), self.threshold)
        counterfactual = train_counterfactual(
            self._small_for(model, aux.companions),
            aux.training,
            self.schedule(self.counterfactual_learning_rate, self.counterfactual_steps),
            aux.cache,
            CounterfactualSettings(
                self.joint,
                self.unlikelihood,
                self.renamed_share,
                self.rows_per_edit,
                self.prompt_weight,
                self.mean_over,
            ),
        )
        memory = SeracDelta(1.0, scope, self.joint, model.tokenizer, counterfactual)
        yield EpochEdit(memory, carried=CarriedMemory(memory))

    def _small_for(self, model: LanguageModel, companions: Companions) -> LanguageModel:
        small = companions.load(self.counterfactual)
        if not share_tokens(model.tokenizer, small.tokenizer):
            raise ConfigError(
                f"The counterfactual model answers in the model's own tokens: {model.id} and "
                f"{small.id} must share a tokenizer, and they do not. Give another "
                "`counterfactual`."
            )
        if model.end_id >= small.network.config.vocab_size:
            raise ConfigError(
                f"The end-of-text token of {model.id} ({model.end_id}) must be known to "
                f"{small.id}, which knows {small.network.config.vocab_size} tokens. "
                "Give another `counterfactual`."
            )
        return small
