"""Reading what flows through a module of a network, and adding to it, at chosen tokens.

Whatever a module sees, what is read and changed here has the axes rows × tokens × width. Some
families, such as OPT, hand their MLP all tokens of a batch as one list.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.editing.prompts import Prompts
from tuner.editing.subject import LocatedPrompt, right_padded

_ROWS = 128


@final
@dataclass
class Recording:
    """The last input and output of a module, rows × tokens × width."""

    input: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def recorded(module: nn.Module, rows: int) -> Iterator[Recording]:
    """Keep the last input and output of `module` while the context is open.

    `rows` is how many texts a batch holds.
    """
    recording = Recording()

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        recording.input = by_row(inputs[0], rows)
        # Falcon's layers go on to add to the output in place.
        recording.output = by_row(_first(output), rows).clone()

    handle = module.register_forward_hook(keep)
    try:
        yield recording
    finally:
        handle.remove()


@contextmanager
def changed_output(
    module: nn.Module, rows: int, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the output of `module` by `change(output)` while the context is open.

    `rows` is how many texts a batch holds; `change` sees rows × tokens × width.
    """

    def changed(output: Tensor) -> Tensor:
        return change(by_row(output, rows)).reshape(output.shape)

    def replace(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        # Blocks return a tensor or a tuple that starts with it, depending on the release.
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        return changed(output)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def by_row(activations: Tensor, rows: int) -> Float[Tensor, "rows tokens width"]:
    """Return what a module sees of a batch, with an axis for the rows where it has none."""
    if activations.ndim != 2:
        return activations
    return activations.reshape(rows, -1, activations.shape[-1])


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


@torch.no_grad()
def prompt_activations(network: PreTrainedModel, module: nn.Module, prompts: Prompts) -> Recording:
    """Return what flows through `module` while the network reads prompts."""
    with recorded(module, len(prompts)) as recording:
        network.base_model(
            input_ids=prompts.ids,
            attention_mask=prompts.mask.long(),
            position_ids=prompts.positions,
            use_cache=False,
        )
    return recording


@torch.no_grad()
def subject_activations(
    network: PreTrainedModel,
    module: nn.Module,
    prompts: Sequence[LocatedPrompt],
    pad_id: int,
) -> tuple[Float[Tensor, "prompts d_in"], Float[Tensor, "prompts d_out"]]:
    """Return input and output of `module` at the subject token of each prompt, in float64."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for start in range(0, len(prompts), _ROWS):
        part = prompts[start : start + _ROWS]
        ids, mask, positions = right_padded(part, pad_id, network.device)
        with recorded(module, len(part)) as recording:
            network.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        rows = torch.arange(len(part), device=ids.device)
        inputs.append(recording.input[rows, positions].double())
        outputs.append(recording.output[rows, positions].double())
    return torch.cat(inputs), torch.cat(outputs)
