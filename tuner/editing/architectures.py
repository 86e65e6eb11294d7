"""One row per model family: where its layers and MLP weights live."""

from dataclasses import dataclass

from torch import nn

from tuner.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """Where the parts that editors touch are found in a family's module tree."""

    layers: str
    """Path of the list of layers."""
    mlp_in: tuple[str, ...]
    """Within a layer: the linear maps into the MLP's hidden width, the gate before the up map."""
    mlp_out: str
    """Within a layer: the linear map back to the residual stream."""
    transposed: bool = False
    """Whether linear weights are stored (in, out), as GPT-2's Conv1D does."""

    def layer_count(self, network: nn.Module) -> int:
        """Return the number of layers of a network of this family."""
        layers = network.get_submodule(self.layers)
        if not isinstance(layers, nn.ModuleList):
            raise ConfigError(
                f"{self.layers!r} is not a list of layers in {type(network).__name__}."
            )
        return len(layers)

    def layer_module(self, layer: int) -> str:
        """Return the full path of a layer."""
        return f"{self.layers}.{layer}"

    def mlp_modules(self, layer: int) -> tuple[str, ...]:
        """Return the full paths of a layer's MLP linear maps, input side first."""
        return tuple(f"{self.layers}.{layer}.{name}" for name in (*self.mlp_in, self.mlp_out))

    def up_and_down(self, layer: int) -> tuple[str, str]:
        """Return the full paths of a layer's map up and map down; a gate is not among them."""
        up, down = self.mlp_modules(layer)[-2:]
        return up, down


_GATED = Architecture(
    layers="model.layers", mlp_in=("mlp.gate_proj", "mlp.up_proj"), mlp_out="mlp.down_proj"
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt_neox": Architecture(
        layers="gpt_neox.layers", mlp_in=("mlp.dense_h_to_4h",), mlp_out="mlp.dense_4h_to_h"
    ),
    "gpt2": Architecture(
        layers="transformer.h", mlp_in=("mlp.c_fc",), mlp_out="mlp.c_proj", transposed=True
    ),
    # A Backpack's layers are its contextualiser's: senses are edited by themselves.
    "backpack": Architecture(
        layers="backpack.gpt2_model.h", mlp_in=("mlp.c_fc",), mlp_out="mlp.c_proj", transposed=True
    ),
    "gptj": Architecture(layers="transformer.h", mlp_in=("mlp.fc_in",), mlp_out="mlp.fc_out"),
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
}


def architecture_of(model_type: str) -> Architecture:
    """Return the row of a family by its `model_type` in transformers.

    Raises:
        ConfigError: the family has no row.
    """
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        raise ConfigError(
            f"Models of type {model_type!r} cannot be edited yet. Known: "
            f"{', '.join(sorted(ARCHITECTURES))}. A family is one row in "
            "tuner/editing/architectures.py."
        ) from None
