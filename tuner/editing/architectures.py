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

    def check(self, network: nn.Module) -> None:
        """Verify that each layer of a network has the linear maps of this row.

        Raises:
            ConfigError: one of them is missing, or is something else.
        """
        for layer in range(self.layer_count(network)):
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
        """Return the full paths of a layer's MLP linear maps, input side first."""
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
    "opt": Architecture(layers="model.decoder.layers", mlp_in=("fc1",), mlp_out="fc2"),
    "qwen2": _GATED,
}


@cache
def architecture_of(model_type: str) -> Architecture:
    """Return the row of a family by its `model_type` in transformers.

    A family without a row gets one that is derived from its module tree, if every layer has one
    MLP of linear maps whose output map peft's table of feed-forward maps knows by name.

    Raises:
        ConfigError: there is no such family of causal models, or its layers have no such MLP.
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
    lists = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == network.config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise _refusal(model_type, f"it has {len(lists)} lists of layers where one is needed")
    ((path, layers),) = lists
    found = {tuple(_mlps(model_type, layer, network.config.hidden_size)) for layer in layers}
    if len(found) != 1:
        raise _refusal(model_type, "its layers differ")
    (mlps,) = found
    if len(mlps) != 1:
        raise _refusal(
            model_type,
            f"each of its layers has {len(mlps)} MLPs of linear maps where one is needed",
        )
    ((inputs, output),) = mlps
    return Architecture(layers=path, mlp_in=inputs, mlp_out=output)


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
                name
                for name, module in linear
                if (module.in_features, module.out_features) == (hidden, down.in_features)
                and name != output
            ]
            gates = [name for name in inputs if "gate" in name.rpartition(".")[-1]]
            ups = [name for name in inputs if name not in gates]
            if len(ups) == 1 and len(gates) <= 1:
                yield (*gates, *ups), output


def _refusal(model_type: str, reason: str) -> ConfigError:
    return ConfigError(
        f"Models of type {model_type!r} cannot be edited: {reason}. Every layer must have one MLP "
        f"of linear maps. Known: {', '.join(sorted(ARCHITECTURES))}, and families like them. A "
        "family is one row in tuner/editing/architectures.py."
    )
