"""Low-rank changes that run beside a weight, as adapters are served, and never touch it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_HALF = (torch.float16, torch.bfloat16)


def runs_beside(network: nn.Module, name: str) -> bool:
    """Return whether a low-rank change of a parameter is held beside it and not added to it.

    In half precision a weight rounds away most of a small change, so that what is added is
    another edit than the adapter that users serve. In float32 both are the same to rounding, and
    adding is cheaper.
    """
    module = linear_map(network, name)
    return module is not None and module.weight.dtype in _HALF


@contextmanager
def beside(network: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Hold changes `left @ right` of parameters beside them, inside the context.

    As PEFT does: the factors stay in float32, the input is raised to it, and the sum is rounded
    to the output's precision once.
    """
    with ExitStack() as stack:
        for name, (left, right) in factors.items():
            module = linear_map(network, name)
            if module is None:  # the caller has asked `runs_beside`
                raise ValueError(f"{name!r} is not the weight of a linear map.")
            down, up = (left.T, right.T) if isinstance(module, Conv1D) else (right, left)
            device = module.weight.device
            hook = _Adapter(down.to(device, torch.float32), up.to(device, torch.float32))
            stack.callback(module.register_forward_hook(hook).remove)
        yield


class _Adapter:
    """Adds up·(down·x) to what a linear map makes of x."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self._down = down  # rank × inputs
        self._up = up  # outputs × rank

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = F.linear(F.linear(args[0].to(self._down.dtype), self._down), self._up)
        return (output + change).to(output.dtype)


def linear_map(network: nn.Module, name: str) -> nn.Linear | Conv1D | None:
    """Return the linear map whose weight a parameter is, if it is one."""
    path, _, role = name.rpartition(".")
    if role != "weight":
        return None
    try:
        module = network.get_submodule(path)
    except AttributeError:
        return None
    return module if isinstance(module, nn.Linear | Conv1D) else None
