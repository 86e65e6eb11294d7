"""Gradient descent on canonical examples with a KL term: what the trained editors share."""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.likelihood import MeanOver, shares_of, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, LossKind
from tuner.editors._training.rows import RowsEditor, TrainingRow
from tuner.errors import EditError


class TrainedEditor(RowsEditor):
    """An editor that descends the task's loss plus a KL term towards the base model.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §4 and their code: Adam without weight decay,
    learning rate on a cosine to zero, stepped once per epoch, dropout off.
    """

    learning_rate: float = Field(gt=0, lt=1, description="Adam's learning rate in epoch one.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="How the learning rate goes on from epoch to epoch."
    )
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
    mean_over: MeanOver = Field(
        default="examples",
        description="Whether the examples of a batch count alike or by their targets' tokens.",
    )
    skip_below: float | None = Field(
        default=None,
        gt=0,
        description="Make no step of the optimiser for a batch whose mean loss is below this, for "
        "losses that end at 0 (likelihood, balance); default always make it.",
    )
    stop_below: float | None = Field(
        default=None,
        gt=0,
        description="End after an epoch whose mean loss is below this, for losses that end at 0 "
        "(likelihood, balance); default never.",
    )
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
        optimiser = torch.optim.AdamW(
            weights, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=self.epochs)
        rows_by_epoch = self.rows_by_epoch(model, examples, aux, seed=seed)
        for rows in itertools.islice(rows_by_epoch, self.epochs):
            losses: list[float] = []
            for batch in self._batches(rows, random):
                try:
                    optimiser.zero_grad(set_to_none=True)
                    of_batch = self._accumulate(network, weights, model, batch, aux, random)
                    losses += of_batch
                    mean = math.fsum(of_batch) / len(of_batch)
                    if not self._under(self.skip_below, mean, examples.loss):
                        optimiser.step()
                except torch.OutOfMemoryError:
                    raise EditError(
                        "Memory ran out during training; lower micro_batch_size or use a larger "
                        "device."
                    ) from None
            if not losses:
                raise EditError(
                    f"paper_exact drops incomplete batches, and {len(rows)} rows do not fill one "
                    f"of {self.batch_size}; lower batch_size."
                )
            if self.schedule == "cosine":
                schedule.step()
            mean = math.fsum(losses) / len(losses)
            yield mean
            if self._under(self.stop_below, mean, examples.loss):
                return

    def train_in_full(
        self,
        names: Collection[str],
        model: LanguageModel,
        examples: ExampleSet,
        aux: Auxiliary,
        *,
        seed: int,
    ) -> Iterator[EpochEdit]:
        """Train every number of the weights in `names`; yield their change after each epoch.

        Raises:
            EditError: the training diverged or ran out of memory.
        """
        network = trainable_twin(model, names)
        base = {name: model.network.get_parameter(name) for name in names}
        trained = {name: network.get_parameter(name) for name in names}
        for loss in self.descend(network, list(trained.values()), model, examples, aux, seed=seed):
            with torch.no_grad():
                changes = {
                    name: Dense(weight.float() - base[name].float())
                    for name, weight in trained.items()
                }
            yield EpochEdit(WeightDelta(changes), loss)

    def _under(self, limit: float | None, mean: float, loss: LossKind) -> bool:
        # The other losses fall below zero and go on: there is no point at which they are learned.
        ends_at_zero = loss in (LossKind.LIKELIHOOD, LossKind.BALANCE)
        return limit is not None and ends_at_zero and mean < limit

    def _batches(
        self, rows: Sequence[TrainingRow], random: torch.Generator
    ) -> Iterator[list[TrainingRow]]:
        order = torch.randperm(len(rows), generator=random).tolist()
        for start in range(0, len(order), self.batch_size):
            batch = [rows[row] for row in order[start : start + self.batch_size]]
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
        batch: Sequence[TrainingRow],
        aux: Auxiliary,
        random: torch.Generator,
    ) -> list[float]:
        """Add the gradient of the batch's mean loss and mean KL; return the rows' losses."""
        size = self.micro_batch_size or len(batch)
        shares = shares_of([row.encoded for row in batch], self.mean_over).to(model.device)
        values: list[float] = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            losses = row_losses(network, part, model.end_id)
            total = (losses * shares[start : start + size]).sum() / len(batch)
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


def row_losses(
    network: PreTrainedModel, rows: Sequence[TrainingRow], pad_id: int
) -> Float[Tensor, " rows"]:
    """Return the training loss of each row, by the loss kind of its own."""
    kinds = sorted({row.loss for row in rows})
    places = [index for kind in kinds for index, row in enumerate(rows) if row.loss is kind]
    losses = torch.cat(
        [
            training_losses(
                network, kind, [row.encoded for row in rows if row.loss is kind], pad_id
            )
            for kind in kinds
        ]
    )
    return losses[torch.tensor(places, device=losses.device).argsort()]


def trainable_twin(model: LanguageModel, names: Collection[str]) -> PreTrainedModel:
    """Return a twin of the model in single precision, of which the weights in `names` are free."""
    precise = all(weight.dtype is torch.float32 for weight in model.network.parameters())
    # In half precision Adam's small numbers vanish: copy all weights and raise their precision.
    own = names if precise else dict(model.network.named_parameters())
    network = model.twin(own=own)
    if not precise:
        network = network.float()
    for name in names:
        network.get_parameter(name).requires_grad_(True)
    return network


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
