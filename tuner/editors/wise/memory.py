"""WISE: side memories of one linear map, each for the prompts on which it makes a difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel
from torch import Tensor, nn

from tuner.deltas.memory.layered import LayeredMemory, LayerPass
from tuner.deltas.memory.memory import MemoryState
from tuner.editing.companions import Surroundings
from tuner.editing.delta import check_real
from tuner.editing.prompts import Prompts, Routes
from tuner.errors import ConfigError

# Beyond as many tokens the few that matter are lost in a mean.
_LONG = 100
_TINY = torch.finfo(torch.float32).tiny


@final
class WiseState(MemoryState):
    """What must be known of side memories beside their matrices and thresholds."""

    kind: Literal["wise"] = "wise"
    module: str


@final
@dataclass(frozen=True)
class WiseDelta(LayeredMemory):
    """What side memories change of one linear map's matrix, and from which difference on.

    A prompt is in the scope of a side memory if that would change the map's output by at least
    its threshold. All of the text is then read with it. Of several, the one counts whose
    difference is the most thresholds.

    Source: Wang et al. 2024 (arXiv:2405.14768), eq. 3 and 6; the published code passes the outputs
    through the model's activation function first and decides at every pass anew.
    """

    changes: Float[Tensor, "sides d_in d_out"]
    thresholds: Float[Tensor, " sides"]
    state_type: ClassVar[type[MemoryState]] = WiseState

    @property
    def widths(self) -> tuple[int, int]:
        """The numbers of inputs and outputs of the linear map that it was made for."""
        return self.changes.shape[1], self.changes.shape[2]

    def decide(
        self, module: nn.Module, inputs: Float[Tensor, "prompts width d_in"], prompts: Prompts
    ) -> Routes:
        """Return the routes of prompts by the difference that the side memories make."""
        thresholds = self.thresholds.to(inputs.device)
        needed = torch.stack(
            [
                threshold / output_difference(inputs, change, prompts.mask).clamp_min(_TINY)
                for change, threshold in zip(self.changes, thresholds, strict=True)
            ]
        )
        least, sides = needed.min(dim=0)
        return Routes(sides, least)

    def changed(
        self, module: nn.Module, entries: Tensor, seen: LayerPass
    ) -> Float[Tensor, "rows columns d_out"]:
        """Return the output of the map with the side memories' matrices instead of its own."""
        output = seen.output.clone()
        for side in set(entries.tolist()):
            rows = entries == side
            output[rows] += seen.inputs[rows] @ self.changes[side].to(seen.inputs)
        return output

    def tensors(self) -> dict[str, Tensor]:
        """Return what is added to the matrix, as inputs × outputs, and the thresholds."""
        return {
            "changes": self.changes.detach().cpu().contiguous(),
            "thresholds": self.thresholds.cpu().contiguous(),
        }

    @property
    def state(self) -> WiseState:
        """What must be known beside the tensors."""
        return WiseState(strength=self.strength, module=self.module)

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the side memories that `state` and `tensors()` described.

        Raises:
            ConfigError: they do not fit together.
        """
        changes, thresholds = tensors.get("changes"), tensors.get("thresholds")
        if (
            not isinstance(state, WiseState)
            or changes is None
            or thresholds is None
            or (changes.ndim, thresholds.ndim) != (3, 1)
            or not len(changes) == len(thresholds) > 0
        ):
            raise ConfigError("Side memories need one matrix and one threshold each.")
        check_real("the change of a side memory", changes)
        check_real("the threshold of a side memory", thresholds)
        return cls(state.strength, state.module, changes, thresholds)

    def describe(self) -> str:
        """Return the number of side memories and how much of the matrices they change."""
        share = int(self.changes.count_nonzero()) / max(1, self.changes.numel())
        count = len(self.changes)
        return f"{count} side {'memory' if count == 1 else 'memories'}, {share:.1%} of a matrix"


def output_difference(
    inputs: Float[Tensor, "prompts width d_in"],
    change: Float[Tensor, "d_in d_out"],
    mask: Bool[Tensor, "prompts width"],
) -> Float[Tensor, " prompts"]:
    """Return by how much a change of the matrix moves its output, in the mean over each prompt.

    Of prompts of more than 100 tokens, it is the token that moves most.
    """
    moved = (inputs.float() @ change.to(inputs.device).float()).norm(dim=-1)
    lengths = mask.sum(dim=1)
    mean = torch.where(mask, moved, 0.0).sum(dim=1) / lengths
    most = torch.where(mask, moved, 0.0).amax(dim=1)
    return torch.where(lengths > _LONG, most, mean)
