"""A perturbation of the size of a number's rounding, which no measurement can tell from nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def rounding_noise(network: PreTrainedModel, *, seed: int = 0) -> Iterator[None]:
    """Move every entry of the token embeddings up or down by the rounding of its dtype.

    The relative size is the distance from 1 to the next number that the dtype holds. Running the
    same kernels on the same weights again would show nothing: a processor repeats itself to the
    bit, while any change of an edit, of a batch or of a machine makes other roundings.
    """
    embeddings = network.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)

    def perturb(module: nn.Module, args: object, output: Tensor) -> Tensor:
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output.device)
        precise = torch.promote_types(output.dtype, torch.float32)
        # A whole step of the dtype: half a step would be rounded back to even half of the time.
        step = torch.finfo(output.dtype).eps
        moved = output.to(precise) * (1 + step * (signs * 2 - 1).to(precise))
        return moved.to(output.dtype)

    handle = embeddings.register_forward_hook(perturb)
    try:
        yield
    finally:
        handle.remove()
