"""What an edit does on the rows of a task."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from tuner.editing.constraint import Metric
from tuner.editing.likelihood import (
    EncodedExample,
    continuation_losses,
    encode_continuation,
    encode_example,
    in_length_order,
    success_losses,
)
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, Split
from tuner.errors import EditError
from tuner.evaluation.confidence import clustered_interval
from tuner.evaluation.generation import generate_greedily
from tuner.evaluation.scores import Interval, Scores

_BATCH = 32


@final
class SuccessMeter:
    """Judges the model, as it stands at the moment of the call, on one split of a task."""

    def __init__(self, model: LanguageModel, split: Split, threshold: float) -> None:
        self._model = model
        self._threshold = threshold
        self._loss = split.ood.loss
        self._ood = [encode_example(model, row) for row in split.ood.rows]
        self._hard = [
            encode_continuation(model, row.prompt, row.target) for row in split.hard_negatives.rows
        ]
        self._related = [
            # Whole texts: everything after the first token is judged.
            encode_continuation(model, "", passage.text)
            for passage in split.related
        ]
        self._clusters = _clusters(split.ood)

    def success(self) -> Scores:
        """Return the share of OOD rows whose loss meets the threshold, and nothing else.

        Raises:
            EditError: a loss is NaN.
        """
        losses = self._in_batches(self._ood)
        if torch.isnan(losses).any():
            raise EditError("The edited model's loss on the task is NaN.")
        met = tuple(bool(value) for value in losses <= self._threshold)
        return Scores(success=sum(met) / len(met), row_success=met)

    def scores(self, metrics: Collection[Metric] = tuple(Metric)) -> Scores:
        """Return success with everything that is reported beside it, or with some of that only.

        Raises:
            EditError: a loss is NaN.
        """
        measure: dict[Metric, Callable[[], float | None]] = {
            Metric.EXACT: self._exact,
            Metric.HARD_NEGATIVE_LOSS: lambda: self._mean_loss(per_token=False),
            Metric.RELATED_LOSS: lambda: self._mean_loss(per_token=True),
        }
        found = self.success()
        return found.model_copy(update={metric.value: measure[metric]() for metric in metrics})

    def gain_interval(self, edited: Scores, base: Scores) -> Interval:
        """Return the interval of the gain in success, resampling subjects."""
        differences = np.array(edited.row_success, float) - np.array(base.row_success, float)
        return clustered_interval(differences, self._clusters)

    @torch.no_grad()
    def _in_batches(self, rows: Sequence[EncodedExample]) -> Tensor:
        losses = torch.empty(len(rows))
        lengths = [len(row.target.ids) for row in rows]
        for batch in in_length_order(lengths, _BATCH):
            found = success_losses(
                self._model.network, self._loss, [rows[row] for row in batch], self._model.end_id
            )
            losses[batch] = found.float().cpu()
        return losses

    @torch.no_grad()
    def _mean_loss(self, *, per_token: bool) -> float | None:
        rows = self._related if per_token else self._hard
        if not rows:
            return None
        total = math.fsum(
            value
            for batch in in_length_order([len(row.ids) for row in rows], _BATCH)
            for value in continuation_losses(
                self._model.network, [rows[row] for row in batch], self._model.end_id
            ).tolist()
        )
        return total / (sum(row.target_length for row in rows) if per_token else len(rows))

    def _exact(self) -> float:
        hits = 0
        for batch in in_length_order([row.target.start for row in self._ood], 2 * _BATCH):
            rows = [self._ood[row].target for row in batch]
            said = generate_greedily(
                self._model,
                [row.ids[: row.start] for row in rows],
                max(row.target_length for row in rows),
            )
            for row, words in zip(rows, said, strict=True):
                wanted = self._model.tokenizer.decode(list(row.ids[row.start :]))
                hits += self._model.tokenizer.decode(words[: row.target_length]) == wanted
        return hits / len(self._ood)


def _clusters(rows: ExampleSet) -> np.ndarray:
    names = [row.subject or f"row {number}" for number, row in enumerate(rows.rows)]
    return np.array(names)
