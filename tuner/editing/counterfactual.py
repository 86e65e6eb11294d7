"""The counterfactual model: a small language model that answers by an edit standing before it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tuner.cache import Cache
from tuner.editing.amortised_training import (
    Schedule,
    changed_weights,
    train,
    trained_once,
    training_key,
)
from tuner.editing.edit_text import EditText, continuation_after
from tuner.editing.likelihood import Continuation, continuation_losses, unlikelihood_losses
from tuner.editing.model import LanguageModel
from tuner.editing.renaming import Names, renamed
from tuner.editing.scope_network import put_weights
from tuner.editing.task import Example, Split
from tuner.editing.training_edits import (
    TrainingEdit,
    check_training,
    hold_out,
    split_hash,
    training_edits,
)
from tuner.editing.training_rows import generator_for


@final
@dataclass(frozen=True)
class Counterfactual:
    """A small model, and the trained weights that take the place of its own."""

    small: LanguageModel
    weights: Mapping[str, Tensor]

    @cached_property
    def network(self) -> PreTrainedModel:
        """The trained network; weights that were not trained are the small model's.

        Raises:
            BaseMismatch: the weights are of another model.
        """
        network = self.small.twin(own=self.weights)
        put_weights(network, self.weights)
        return network


@final
@dataclass(frozen=True)
class Reading:
    """How edits are read, and what is learnt of them."""

    joint: str
    """What stands between an edit and a prompt."""
    unlikelihood: bool
    """Whether the tokens of a row's contrast are made unlikely."""
    renamed_share: float
    """How often an edit is read with other names."""


def train_counterfactual(
    small: LanguageModel,
    split: Split | None,
    schedule: Schedule,
    cache: Cache | None,
    reading: Reading,
) -> Counterfactual:
    """Return a model that says what an edit, read before a prompt in its scope, asks for.

    It is trained with the right edit, not with the one that a classifier would find.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.3 and their code. That targets are renamed
    is ours: they had some hundred thousand edits to train on, where a few hundred are learnt by
    heart and none is read.

    Raises:
        ConfigError: there is nothing to train on, or an edit exceeds the model's context.
        EditError: the training diverged or ran out of memory.
    """
    split = check_training(split, without_outside=True)
    edits = training_edits(split)
    settings = json.dumps(asdict(reading), sort_keys=True)
    data = split_hash(split)
    key = training_key(small.network, small.fingerprint, data, schedule, settings)

    def make() -> dict[str, Tensor]:
        return _trained(_Rows(small, reading), edits, schedule)

    return Counterfactual(small, trained_once(cache, "counterfactual", key, make))


def _trained(rows: "_Rows", edits: Sequence[TrainingEdit], schedule: Schedule) -> dict[str, Tensor]:
    own = dict(rows.small.network.named_parameters())
    network = rows.small.twin(own=own).requires_grad_(True)
    random = generator_for("counterfactual model", schedule.seed)
    some, held = hold_out(edits, schedule.held_out, random)
    names = Names(rows.small.tokenizer, some)

    def step_loss() -> Tensor:
        order = torch.randperm(len(some), generator=random)[: schedule.edits_per_step]
        drawn = []
        for edit in (some[place] for place in order.tolist()):
            if float(torch.rand((), generator=random)) < rows.reading.renamed_share:
                edit = renamed(edit, names, random)
            row = int(torch.randint(len(edit.inside), (), generator=random))
            drawn.append((edit, edit.inside[row]))
        return rows.loss(network, drawn)

    judged = [(edit, row) for edit in held for row in edit.inside]
    train(
        dict(network.named_parameters()),
        step_loss,
        (lambda: float(rows.loss(network, judged))) if judged else None,
        schedule,
    )
    return changed_weights(dict(network.named_parameters()), own)


@final
@dataclass(frozen=True)
class _Rows:
    """What the model learns of rows in the scope of an edit."""

    small: LanguageModel
    reading: Reading

    def loss(
        self, network: PreTrainedModel, rows: Sequence[tuple[TrainingEdit, Example]]
    ) -> Float[Tensor, ""]:
        """Return the mean over rows of −log p per token, and of −log (1 − p) of the contrasts."""
        targets = [self._encoded(edit, row, row.target) for edit, row in rows]
        losses = continuation_losses(network, targets, self.small.end_id)
        total = (losses / _lengths(targets).to(losses)).mean()
        contrasts = [
            self._encoded(edit, row, row.contrast)
            for edit, row in rows
            if row.contrast is not None and self.reading.unlikelihood
        ]
        if contrasts:
            losses = unlikelihood_losses(network, contrasts, self.small.end_id)
            total = total + (losses / _lengths(contrasts).to(losses)).mean()
        return total

    def _encoded(self, edit: TrainingEdit, row: Example, target: str) -> Continuation:
        return continuation_after(
            self.small.tokenizer,
            EditText.of(edit.edit),
            self.reading.joint,
            row.prompt,
            self.small.encode(target),
            most=self.small.context_length,
        )


def _lengths(rows: Sequence[Continuation]) -> Float[Tensor, " rows"]:
    return torch.tensor([float(row.target_length) for row in rows])
