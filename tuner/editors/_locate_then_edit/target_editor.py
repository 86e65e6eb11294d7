"""How target vectors are sought, as hyperparameters: what ROME and MEMIT's kin share."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tuner.editing.editor import Editor
from tuner.editors._locate_then_edit.target_vectors import TargetSettings


class TargetEditor(Editor):
    """An editor that first seeks what a layer should say at the subject, then writes it."""

    # The subject hardly matters to what a random model says next: nothing holds its vectors back.
    smoke_settings: ClassVar[Mapping[str, object]] = {
        "target_steps": 25,
        "learning_rate": 0.1,
        "clamp": 4.0,
        "weight_decay": 0.0,
        "kl_weight": 0.0,
        "prefixes": 0,
    }
    deterministic: ClassVar[bool] = True  # contexts are drawn by prefix_seed

    learning_rate: float = Field(
        default=0.5, gt=0, le=10, description="Adam's learning rate of the target vectors."
    )
    target_steps: int = Field(default=20, ge=1, le=1000, description="Optimisation steps for v*.")
    clamp: float = Field(gt=0, description="Greatest change of a target vector, in its own norms.")
    kl_weight: float = Field(
        default=0.0625,
        ge=0,
        description="Weight of the KL term on the essence prompt '{subject} is a'.",
    )
    weight_decay: float = Field(
        default=0.5, ge=0, description="Weight of the norm of a target vector's change."
    )
    prefixes: int = Field(
        ge=0, le=64, description="Model-written contexts in which the facts must hold."
    )
    prefix_seed: int = Field(default=0, ge=0, description="Seed of the contexts.")

    def target_settings(
        self, layer: int, site: Literal["layer", "mlp"], contexts: tuple[str, ...]
    ) -> TargetSettings:
        """Return the settings for vectors at one layer that should work in these contexts."""
        return TargetSettings(
            layer=layer,
            site=site,
            prefixes=contexts,
            steps=self.target_steps,
            learning_rate=self.learning_rate,
            clamp=self.clamp,
            kl_weight=self.kl_weight,
            weight_decay=self.weight_decay,
        )
