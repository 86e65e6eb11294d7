"""LoRA: a low-rank change of the linear maps of a band of layers."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from tuner.editing.companions import Companions
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.layers import LayerBandEditor, layer_band
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors._training.loop import TrainedEditor


@final
class Lora(LayerBandEditor, TrainedEditor):
    """Trains low-rank factors of linear maps (Hu et al. 2021, arXiv:2106.09685).

    Sources: Hewitt et al. 2024 (arXiv:2402.06155), §4: the MLP's maps up and down only, no gate
    in families that have one, alpha 8, no dropout, a band of layers around the middle. Gangadhar
    and Stratos 2024 (arXiv:2402.11078) take the maps of attention too, in all layers (and the
    embeddings, which stay as they are here).
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        "learning_rate": 1e-2,
        "epochs": 2,
        "rank": 2,
    }

    rank: int = Field(default=8, ge=1, le=4096, description="Rank of each change.")
    lora_alpha: float = Field(default=8.0, gt=0, description="Scale; the change is alpha/rank·BA.")
    center: float = Field(
        default=0.5, ge=0, le=1, description="Middle of the band, as a fraction of all layers."
    )
    width: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Width of the band, as a fraction of all layers; 0 is the middle layer alone.",
    )
    maps: Literal["up_down", "mlp", "all"] = Field(
        default="up_down",
        description="Linear maps of each layer: the MLP's up and down, its gate too, or all, "
        "attention's too. Where gate and up are one matrix, that is changed whole.",
    )

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the model has the layers, and the maps in each.

        Raises:
            ConfigError: it has not.
        """
        for layer in self.layers(model.layer_count):
            self._targets(model, layer)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the low-rank change after each epoch.

        Raises:
            EditError: the training diverged or ran out of memory.
        """
        layers = self.layers(model.layer_count)
        targets = [name for layer in layers for name in self._targets(model, layer)]
        network = model.twin(own=())
        # peft draws its factors from torch's global generator; fork it, so that the draw depends
        # on the seed alone and no other numbers change.
        with torch.random.fork_rng(devices=_devices_of(model)):
            torch.manual_seed(seed)
            inject_adapter_in_model(
                LoraConfig(
                    r=self.rank,
                    lora_alpha=self.lora_alpha,
                    lora_dropout=0.0,
                    bias="none",
                    target_modules=targets,
                    fan_in_fan_out=model.architecture.transposed,
                ),
                network,
            )
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        for weight in weights:
            # In half precision Adam's small numbers vanish.
            weight.data = weight.data.float()
        for loss in self.descend(network, weights, model, examples, aux, seed=seed):
            changes = {
                f"{name}.weight": self._change(network.get_submodule(name), model)
                for name in targets
            }
            yield EpochEdit(WeightDelta(changes), loss)

    def band(self, count: int) -> range:
        """Return the layers around `center`."""
        return layer_band(count, self.center, self.width)

    def _targets(self, model: LanguageModel, layer: int) -> list[str]:
        if self.maps == "up_down":
            return list(model.architecture.up_and_down(layer))
        if self.maps == "mlp":
            return list(model.architecture.mlp_modules(layer))
        path = model.architecture.layer_module(layer)
        return [
            f"{path}.{name}"
            for name, module in model.network.get_submodule(path).named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        ]

    @torch.no_grad()
    def _change(self, module: nn.Module, model: LanguageModel) -> LowRank:
        if not isinstance(module, LoraLayer):
            raise TypeError(f"peft left {type(module).__name__} without factors")
        up = module.lora_B["default"].weight.float() * module.scaling["default"]
        down = module.lora_A["default"].weight.float()
        # Conv1D stores (in, out): its change is the transpose, (BA)ᵀ = AᵀBᵀ.
        if model.architecture.transposed:
            return LowRank(down.T.contiguous().clone(), up.T.contiguous().clone())
        return LowRank(up.clone(), down.clone())


def _devices_of(model: LanguageModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
