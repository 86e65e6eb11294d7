"""GRACE: a codebook at one linear map; near a key, the key's value stands for the map's output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from tuner.deltas.memory.distances import distances_between
from tuner.deltas.memory.layered import LayeredMemory, LayerPass
from tuner.deltas.memory.memory import MemoryState
from tuner.editing.companions import Surroundings
from tuner.editing.delta import check_real
from tuner.editing.prompts import Prompts, Routes
from tuner.editors.grace.codebook import Targets
from tuner.errors import ConfigError

Replacement = Literal["last", "prompt", "before_last", "all"]


@final
class GraceState(MemoryState):
    """What must be known of a codebook beside its keys, values and radii."""

    kind: Literal["grace"] = "grace"
    module: str
    replacement: Replacement
    targets: tuple[Targets, ...]


@final
@dataclass(frozen=True)
class GraceDelta(LayeredMemory):
    """Keys with radii, and the values that replace the linear map's output.

    The query of a prompt is what the map reads at the prompt's last token. It is in the scope of
    the nearest key if it is within that key's radius, in Euclidean distance.

    Source: Hartvigsen et al. 2023 (arXiv:2211.11031). Their code decides at every pass anew.
    """

    keys: Float[Tensor, "entries d_in"]
    values: Float[Tensor, "entries d_out"]
    radii: Float[Tensor, " entries"]
    targets: tuple[Targets, ...]
    """What each entry was made for."""
    replacement: Replacement
    """Where the value speaks: at the prompt's last token, all over the prompt, all over it but
    for its last token (what the published code calls `replace_prompt`), or everywhere."""
    state_type: ClassVar[type[MemoryState]] = GraceState

    @property
    def widths(self) -> tuple[int, int]:
        """The numbers of inputs and outputs of the linear map that it was made for."""
        return self.keys.shape[1], self.values.shape[1]

    def decide(
        self, module: nn.Module, inputs: Float[Tensor, "prompts width d_in"], prompts: Prompts
    ) -> Routes:
        """Return the routes of prompts by the distance to the nearest key, in radii."""
        queries = at_the_last(inputs, prompts)
        distance, entries = distances_between(queries, self.keys.to(queries)).min(dim=1)
        return Routes(entries, distance / self.radii.to(distance)[entries])

    def changed(
        self, module: nn.Module, entries: Tensor, seen: LayerPass
    ) -> Float[Tensor, "rows columns d_out"]:
        """Return the output with the entries' values in the columns that are theirs."""
        match self.replacement:
            case "last":
                places = seen.last
            case "prompt":
                places = seen.prompt
            case "before_last":
                places = seen.prompt & ~seen.last
            case "all":
                places = torch.ones_like(seen.last)
        values = self.values.to(seen.output)[entries]
        return torch.where(places[..., None], values[:, None], seen.output)

    def tensors(self) -> dict[str, Tensor]:
        """Return keys, values and radii."""
        return {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in (
                ("keys", self.keys),
                ("values", self.values),
                ("radii", self.radii),
            )
        }

    @property
    def state(self) -> GraceState:
        """What must be known beside the tensors."""
        return GraceState(
            strength=self.strength,
            module=self.module,
            replacement=self.replacement,
            targets=self.targets,
        )

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the codebook that `state` and `tensors()` described.

        Raises:
            ConfigError: they do not fit together.
        """
        keys, values, radii = (tensors.get(name) for name in ("keys", "values", "radii"))
        if (
            not isinstance(state, GraceState)
            or keys is None
            or values is None
            or radii is None
            or (keys.ndim, values.ndim, radii.ndim) != (2, 2, 1)
            or not len(keys) == len(values) == len(radii) == len(state.targets) > 0
        ):
            raise ConfigError(
                "A codebook needs one key, one value and one radius for each of its targets."
            )
        for name, tensor in (("keys", keys), ("values", values), ("radii", radii)):
            check_real(f"the tensor {name!r} of a codebook", tensor)
        if bool((radii < 0).any()):
            raise ConfigError("The radii of a codebook must be at least 0.")
        return cls(
            strength=state.strength,
            module=state.module,
            keys=keys,
            values=values,
            radii=radii,
            targets=state.targets,
            replacement=state.replacement,
        )

    def describe(self) -> str:
        """Return the number of entries and of numbers stored."""
        stored = sum(tensor.numel() for tensor in self.tensors().values())
        return f"{len(self.targets)} entries, {stored:,} numbers"


def at_the_last(
    activations: Float[Tensor, "prompts width size"], prompts: Prompts
) -> Float[Tensor, "prompts size"]:
    """Return what flows at each prompt's last token, in float32."""
    rows = torch.arange(len(prompts), device=activations.device)
    return activations[rows, prompts.last].float()
