"""Memories inside a model: the output of one linear map changes where a prompt is in scope."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuner.deltas.memory.memory import MemoryDelta
from tuner.editing.activations import by_row, prompt_activations
from tuner.editing.prompts import Prompts, Routes, Turns
from tuner.errors import BaseMismatch


@final
@dataclass(frozen=True)
class LayerPass:
    """What flows through the linear map in one pass, in rows that are in scope.

    The columns are those that the pass reads: of the whole text, or what is new after a cache.
    """

    inputs: Float[Tensor, "rows columns d_in"]
    output: Float[Tensor, "rows columns d_out"]
    prompt: Bool[Tensor, "rows columns"]
    """Which columns are the prompt's."""
    last: Bool[Tensor, "rows columns"]
    """Which column is the prompt's last, if it is among them."""


@dataclass(frozen=True)
class LayeredMemory(MemoryDelta):
    """A memory that changes the output of the linear map at the path `module`."""

    module: str

    @abstractmethod
    def decide(
        self, module: nn.Module, inputs: Float[Tensor, "prompts width d_in"], prompts: Prompts
    ) -> Routes:
        """Return the routes of prompts by what the linear map reads of them."""
        ...

    @abstractmethod
    def changed(
        self, module: nn.Module, entries: Tensor, seen: LayerPass
    ) -> Float[Tensor, "rows columns d_out"]:
        """Return what takes the place of `seen.output`, for rows routed to `entries`."""
        ...

    @property
    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """The numbers of inputs and outputs of the linear map that it was made for."""
        ...

    def check_fit(self, network: PreTrainedModel) -> None:
        """Verify that the network has such a linear map.

        Raises:
            BaseMismatch: there is no linear map at that path, or one of other widths.
        """
        self._module(network)

    @torch.no_grad()
    def route(self, network: PreTrainedModel, prompts: Prompts) -> Routes:
        """Return the route of each prompt, whatever the strength."""
        module = self._module(network)
        recording = prompt_activations(network, module, prompts)
        return self.decide(module, recording.input, prompts)

    @torch.no_grad()
    def routes_before(
        self,
        network: PreTrainedModel,
        texts: Int[Tensor, "texts length"],
        ends: Sequence[int],
    ) -> tuple[Routes, ...]:
        """Return the routes of the texts' beginnings, from one pass over the longest."""
        module = self._module(network)
        inputs = prompt_activations(network, module, Prompts.whole(texts[:, : max(ends)])).input
        return tuple(
            self.decide(module, inputs[:, :end], Prompts.whole(texts[:, :end])) for end in ends
        )

    @contextmanager
    def applied(self, network: PreTrainedModel) -> Iterator[None]:
        """Change what `network` computes inside the context, in `forward` and in `generate`.

        Raises:
            BaseMismatch: the network has no such linear map.
        """
        module = self._module(network)
        if self.strength == 0:
            yield
            return
        with Turns.followed(network) as turns:
            handle = module.register_forward_hook(
                lambda hooked, inputs, output: self._change(hooked, turns, inputs, output)
            )
            try:
                yield
            finally:
                handle.remove()

    def _change(
        self, module: nn.Module, turns: Turns, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        turn = turns.turn
        if turn is None:
            return output
        prompts = turn.prompts
        read, said = by_row(inputs[0], len(prompts)), by_row(output, len(prompts))
        if turn.routes is None:
            with torch.no_grad():
                turn.routes = self.decide(module, read, prompts)
        rows = turn.routes.inside(self.strength).nonzero().flatten()
        if not len(rows):
            return output
        columns = torch.arange(prompts.ids.shape[1], device=rows.device)
        seen = LayerPass(
            inputs=read[rows],
            output=said[rows],
            prompt=prompts.mask[rows, turn.past :],
            last=(columns == prompts.last[:, None])[rows, turn.past :],
        )
        entries = turn.routes.entries[rows]
        whole = said.index_copy(0, rows, self.changed(module, entries, seen).to(output))
        return whole.reshape(output.shape)

    def _module(self, network: PreTrainedModel) -> nn.Module:
        try:
            module: nn.Module | None = network.get_submodule(self.module)
        except AttributeError:
            module = None
        if module is None:
            raise BaseMismatch(
                f"The memory changes {self.module!r}, which the model does not have."
            )
        widths = _widths_of(module)
        if widths is None:
            raise BaseMismatch(
                f"The memory changes a linear map, and {self.module!r} of the model is "
                f"{type(module).__name__}."
            )
        if widths != self.widths:
            raise BaseMismatch(
                f"The memory changes a linear map of {self.widths[0]} inputs and {self.widths[1]} "
                f"outputs, and {self.module!r} of the model has {widths[0]} and {widths[1]}."
            )
        return module


def _widths_of(module: nn.Module) -> tuple[int, int] | None:
    """Return how many inputs and outputs a linear map has; None for anything else."""
    match module:
        case nn.Linear():
            return module.in_features, module.out_features
        case Conv1D():
            inputs, outputs = module.weight.shape
            return int(inputs), int(outputs)
    return None
