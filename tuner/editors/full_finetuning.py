"""Full fine-tuning: every weight is free, or every weight of a band of layers."""

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, final

from pydantic import Field

from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.layers import LayerBandEditor, layer_band
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors._training.loop import TrainedEditor


@final
class FullFinetuning(LayerBandEditor, TrainedEditor):
    """Trains all weights on the canonical examples, or those of a band of layers.

    Sources: Hewitt et al. 2024 (arXiv:2402.06155), §4, "full finetuning"; Gangadhar and Stratos
    2024 (arXiv:2402.11078) for a band, of three early layers in their best edits. One layer, and
    a delta that is scaled to the budget, is one-layer interpolation (1-LI, arXiv:2303.00046).
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {"learning_rate": 1e-3, "epochs": 2}

    center: float = Field(
        default=0.5, ge=0, le=1, description="Middle of the band, as a fraction of all layers."
    )
    width: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Width of the band, as a fraction of all layers; 0 is the middle layer alone, "
        "and the default all weights, those outside the layers too.",
    )

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return all of them."""
        return [name for name, _ in model.network.named_parameters()]

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change of the trained weights after each epoch.

        Raises:
            EditError: the training diverged or ran out of memory.
        """
        names = self._trained(model)
        yield from self.train_in_full(names, model, examples, aux, seed=seed)

    def _trained(self, model: LanguageModel) -> list[str]:
        names = [name for name, _ in model.network.named_parameters()]
        if (self.width, self.first_layer, self.last_layer) == (None, None, None):
            return names
        layers = self.layers(model.layer_count)
        band = tuple(f"{model.architecture.layer_module(layer)}." for layer in layers)
        return [name for name in names if name.startswith(band)]

    def band(self, count: int) -> range:
        """Return the layers around `center`; without a width all of them."""
        if self.width is None:
            return range(count)
        return layer_band(count, self.center, self.width)
