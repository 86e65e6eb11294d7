"""What the base model predicts on general text, again and again, without reading it again."""

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tuner.editing.likelihood import read_blocks

# What enters the output layer is kept for this many tokens: 150 MB for a model 4,096 wide in half
# precision.
_KEPT_TOKENS = 16_384


@final
@dataclass
class BaseOutputs:
    """The base model's logits on batches of blocks.

    A vocabulary is many times wider than a model, so of each batch what enters the output layer
    is kept, and only that layer runs again. Models that do more to their logits than this layer
    does (soft caps, scales) are run again whole.
    """

    network: PreTrainedModel
    blocks: Int[Tensor, "blocks length"]
    batch: int
    _inputs: dict[int, Float[Tensor, "batch length width"]] = field(default_factory=dict)
    _suffices: bool | None = None
    """Whether the output layer alone gives the model's logits; None until it was tried."""

    @torch.no_grad()
    def logits(self, start: int, stop: int) -> Float[Tensor, "rows predicted vocabulary"]:
        """Return the logits that predict blocks `start` to `stop`, under the weights as they are.

        Call it on the unedited model.
        """
        known = self._inputs.get(start)
        if self._suffices and known is not None and len(known) == stop - start:
            return self._head(known.to(self.network.device))[:, :-1]
        ids = self.blocks[start:stop].to(self.network.device)
        head = self.network.get_output_embeddings()
        if head is None or self._suffices is False or stop * ids.shape[1] > _KEPT_TOKENS:
            return read_blocks(self.network, ids)
        caught: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: caught.append(args[0].detach()))
        try:
            logits = read_blocks(self.network, ids)
        finally:
            hook.remove()
        if self._suffices is None:
            alone = len(caught) == 1 and caught[0].shape[:2] == ids.shape
            self._suffices = alone and torch.equal(self._head(caught[0])[:, :-1], logits)
        if self._suffices:
            self._inputs[start] = caught[0].cpu()
        return logits

    def _head(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network.get_output_embeddings()(inputs)
        return logits
