"""Gradient descent on canonical examples with a KL term: what the trained editors share."""

import math
from collections.abc import Iterator, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.likelihood import EncodedExample, encode_example, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, LossKind
from tuner.errors import EditError


class TrainedEditor(Editor):
    """An editor that descends the task's loss plus a KL term towards the base model.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §4 and their code: Adam without weight decay,
    learning rate on a cosine to zero, stepped once per epoch, dropout off.
    """

    learning_rate: float = Field(gt=0, lt=1, description="Adam's learning rate in epoch one.")
    epochs: int = Field(default=10, ge=1, le=1000, description="Passes over the examples.")
    batch_size: int = Field(default=5, ge=1, description="Examples per optimiser step.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Examples per forward pass, to bound memory; default all."
    )
    kl_weight: float = Field(
        default=0.3, ge=0, description="Weight of KL(base‖edited), summed over one block."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.995), description="Adam's decay rates.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled decay of the change.")
    paper_exact: bool = Field(
        default=False,
        description="Repeat the published code's accumulation, which uses only the last example "
        "of each batch and drops the remainder.",
    )

    @property
    def steps_per_batch(self) -> int:
        """How many steps the method itself takes: one per epoch."""
        return self.epochs

    @model_validator(mode="after")
    def _betas_are_rates(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"0 ≤ beta < 1 must hold for both betas, but got {self.betas}.")
        return self

    def descend(
        self,
        network: PreTrainedModel,
        weights: Sequence[nn.Parameter],
        model: LanguageModel,
        examples: ExampleSet,
        aux: Auxiliary,
        *,
        seed: int,
    ) -> Iterator[float]:
        """Train `weights` of `network` and yield the mean training loss after each epoch.

        Raises:
            EditError: the loss became NaN or infinite, or memory ran out.
        """
        # A generator of our own: the order of examples depends on the seed and on nothing else.
        random = torch.Generator().manual_seed(seed)
        encoded = [encode_example(model, example) for example in examples.rows]
        optimiser = torch.optim.AdamW(
            weights, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=self.epochs)
        for _ in range(self.epochs):
            losses: list[float] = []
            for batch in self._batches(encoded, random):
                try:
                    optimiser.zero_grad(set_to_none=True)
                    losses += self._accumulate(
                        network, weights, model, examples.loss, batch, aux, random
                    )
                    optimiser.step()
                except torch.OutOfMemoryError:
                    raise EditError(
                        "Memory ran out during training; lower micro_batch_size or use a larger "
                        "device."
                    ) from None
            schedule.step()
            yield math.fsum(losses) / len(losses)

    def _batches(
        self, encoded: Sequence[EncodedExample], random: torch.Generator
    ) -> Iterator[list[EncodedExample]]:
        order = torch.randperm(len(encoded), generator=random).tolist()
        for start in range(0, len(order), self.batch_size):
            batch = [encoded[row] for row in order[start : start + self.batch_size]]
            if not self.paper_exact:
                yield batch
            elif len(batch) == self.batch_size:
                yield batch[-1:]

    @torch.enable_grad()  # the consumer may pull epochs from within no_grad
    def _accumulate(
        self,
        network: PreTrainedModel,
        weights: Sequence[nn.Parameter],
        model: LanguageModel,
        loss: LossKind,
        batch: Sequence[EncodedExample],
        aux: Auxiliary,
        random: torch.Generator,
    ) -> list[float]:
        """Add the gradient of the batch's mean loss and mean KL; return the task losses."""
        size = self.micro_batch_size or len(batch)
        values: list[float] = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            losses = training_losses(network, loss, part, model.end_id)
            total = losses.sum() / len(batch)
            if self.kl_weight:
                row = int(torch.randint(len(aux.general.blocks), (1,), generator=random))
                divergence = kl_from_base(network, model, aux.general.blocks[row : row + 1])
                total = total + self.kl_weight * divergence * len(part) / len(batch)
            if not torch.isfinite(total):
                raise EditError(
                    f"The training loss became {total.item()}; lower the learning rate."
                )
            # Only the trained weights: the twin shares its other weights with the base model.
            torch.autograd.backward(total, inputs=list(weights))
            values += losses.detach().tolist()
        return values


def kl_from_base(
    network: PreTrainedModel, model: LanguageModel, blocks: Int[Tensor, "blocks length"]
) -> Float[Tensor, ""]:
    """Return KL(base‖edited) of the next-token distributions, summed over positions, per block.

    Source: the code of Hewitt et al. 2024, whose sum over positions fixes the scale of its
    weight; their paper writes the divergence the other way round.
    """
    ids = blocks.to(model.device)
    with torch.no_grad():
        base = F.log_softmax(model.network(input_ids=ids, use_cache=False).logits.float(), dim=-1)
    edited = F.log_softmax(network(input_ids=ids, use_cache=False).logits.float(), dim=-1)
    return F.kl_div(edited, base, log_target=True, reduction="sum") / len(blocks)
