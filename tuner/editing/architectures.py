"""Where a model family's layers and MLP weights are: one row each, or derived from the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuner.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """Where the parts that editors touch are found in a family's module tree."""

    layers: str
    """Path of the list of layers."""
    mlp_in: tuple[str, ...] = ()
    """Within a layer: the linear maps into the MLP's hidden width, the gate before the up map; some
    families have both in one map."""
    mlp_out: str | None = None
    """Within a layer: the linear map back to the residual stream, if it has one such map."""
    transposed: bool = False
    """Whether linear weights are stored (in, out), as GPT-2's Conv1D does."""
    refusal: str | None = None
    """Why methods that edit an MLP cannot edit it, where it has no `mlp_out`."""

    def layer_count(self, network: nn.Module) -> int:
        """Return the number of layers of a network of this family."""
        layers = network.get_submodule(self.layers)
        if not isinstance(layers, nn.ModuleList):
            raise ConfigError(
                f"{self.layers!r} is not a list of layers in {type(network).__name__}."
            )
        return len(layers)

    def check(self, network: nn.Module) -> None:
        """Verify that each layer of a network has the linear maps of this row.

        Raises:
            ConfigError: one of them is missing, or is something else.
        """
        for layer in range(self.layer_count(network) if self.mlp_out else 0):
            for path in self.mlp_modules(layer):
                parent, _, name = path.rpartition(".")
                try:
                    module = getattr(network.get_submodule(parent), name, None)
                except AttributeError:
                    module = None
                if not isinstance(module, (nn.Linear, Conv1D)):
                    raise ConfigError(
                        f"{type(network).__name__} cannot be edited: every layer needs an MLP "
                        f"whose maps are linear, but {path!r} is "
                        f"{'missing' if module is None else type(module).__name__}."
                    )

    def layer_module(self, layer: int) -> str:
        """Return the full path of a layer."""
        return f"{self.layers}.{layer}"

    def mlp_modules(self, layer: int) -> tuple[str, ...]:
        """Return the full paths of a layer's MLP linear maps, input side first.

        Raises:
            ConfigError: its layers do not have one MLP of linear maps.
        """
        if self.mlp_out is None:
            raise ConfigError(
                f"This method edits each layer's one MLP of linear maps, but {self.refusal}. Other "
                "methods can edit such a model: lora with `maps: all`, or full_finetuning."
            )
        return tuple(f"{self.layers}.{layer}.{name}" for name in (*self.mlp_in, self.mlp_out))

    def linear_weights(self, network: nn.Module) -> list[str]:
        """Return the names of the weights of the linear maps within the layers."""
        return [
            name
            for name, weight in network.named_parameters()
            if name.startswith(f"{self.layers}.") and weight.ndim == 2
        ]

    def mlp_out_weights(self, network: nn.Module) -> list[str]:
        """Return the names of the weights of each layer's map out of its MLP."""
        count = self.layer_count(network)
        return [f"{self.mlp_modules(layer)[-1]}.weight" for layer in range(count)]

    def up_and_down(self, layer: int) -> tuple[str, str]:
        """Return the full paths of a layer's map up and map down, without a gate of its own.

        Raises:
            ConfigError: its layers do not have one MLP of linear maps.
        """
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
    "opt": Architecture(layers="model.decoder.layers", mlp_in=("fc1",), mlp_out="fc2"),
    "qwen2": _GATED,
}


@cache
def architecture_of(model_type: str) -> Architecture:
    """Return the row of a family by its `model_type` in transformers.

    A family without a row gets one that is derived from its module tree. It has an MLP if every
    layer has one of linear maps whose output map peft's table of feed-forward maps knows by name.

    Raises:
        ConfigError: there is no such family of causal models, or it has not one list of layers
            with attention.
    """
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    try:
        with torch.device("meta"):  # names and shapes alone: no weight is made
            network = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    # Settings of strangers' families may raise anything, and need not have defaults.
    except Exception as error:
        raise _refusal(model_type, f"transformers has no such causal model ({error})") from None
    return _derived(model_type, network)


def _derived(model_type: str, network: PreTrainedModel) -> Architecture:
    config = network.config
    if config.get_text_config() is not config:
        raise _refusal(
            model_type,
            "it reads more than text; save its language model alone, such as gemma3_text of gemma3",
        )
    lists = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise _refusal(model_type, f"it has {len(lists)} lists of layers where one is needed")
    ((path, layers),) = lists
    if not all(any("att" in name for name, _ in layer.named_children()) for layer in layers):
        raise _refusal(model_type, "not every layer has attention, and recurrent ones are unknown")
    kinds = {tuple(_mlps(model_type, layer, config.hidden_size)) for layer in layers}
    if len(kinds) != 1:
        return Architecture(path, refusal=f"the layers of {model_type!r} have different MLPs")
    (mlps,) = kinds
    if len(mlps) != 1:
        return Architecture(
            path,
            refusal=f"the layers of {model_type!r} have {len(mlps) or 'none'} each"
            f"{_stacked_experts(layers)}",
        )
    ((inputs, output),) = mlps
    return Architecture(path, inputs, output)


def _mlps(model_type: str, layer: nn.Module, hidden: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the names of each MLP's maps in and of its map out, as their shapes tell them."""
    table = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    # Families that the table does not list take the names that others have.
    every = sorted({name for names in table.values() for name in names})
    outputs = tuple(f".{name}" for name in table.get(model_type, every))
    for path, parent in layer.named_modules():
        linear = [
            (f"{path}.{name}" if path else name, module)
            for name, module in parent.named_children()
            if isinstance(module, nn.Linear)
        ]
        for output, down in linear:
            if not f".{output}".endswith(outputs) or down.out_features != hidden:
                continue
            inputs = [
                (name, module.out_features)
                for name, module in linear
                if module.in_features == hidden and name != output
            ]
            width = down.in_features
            same = [name for name, size in inputs if size == width]
            gates = [name for name in same if "gate" in name.rpartition(".")[-1]]
            ups = [name for name in same if name not in gates]
            # Phi-3 and its kin have the gate and the map up in one matrix.
            fused = [name for name, size in inputs if size == 2 * width]
            if len(ups) == 1 and len(gates) <= 1:
                yield (*gates, *ups), output
            elif not same and len(fused) == 1:
                yield (*fused,), output


def _stacked_experts(layers: nn.ModuleList) -> str:
    """Return where a mixture keeps the maps of all its experts in one tensor, as a clause."""
    stacked = [name for name, weight in layers[0].named_parameters() if weight.ndim == 3]
    return f": the experts of its mixture share the tensor {stacked[-1]!r}" if stacked else ""


def _refusal(model_type: str, reason: str) -> ConfigError:
    return ConfigError(
        f"Models of type {model_type!r} cannot be edited: {reason}. A decoder needs one list of "
        f"layers with attention. Known: {', '.join(sorted(ARCHITECTURES))}, and families like "
        "them. A family is one row in tuner/editing/architectures.py."
    )
