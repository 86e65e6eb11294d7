"""The slope of what is trained inside a frozen network: values and matrices of memories."""

from collections.abc import Callable

import torch
from torch import Tensor

from tuner.errors import EditError


@torch.enable_grad()  # the consumer may pull edits from within no_grad
def inner_gradient(trained: Tensor, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the losses, and the gradient of their sum by `trained`.

    No other tensor gets a gradient, so that the network may be one that others share.

    Raises:
        EditError: a loss is NaN or infinite, or memory ran out.
    """
    try:
        values = losses()
        if not torch.isfinite(values).all():
            raise EditError("The training loss became NaN or infinite; lower the learning rate.")
        (gradient,) = torch.autograd.grad(values.sum(), trained)
    except torch.OutOfMemoryError:
        raise EditError(
            "Memory ran out during training; train fewer edits at once or use a larger device."
        ) from None
    return values.detach(), gradient
