"""What an edit does on the rows of a task."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tuner.editing.generation import generate_greedily
from tuner.editing.likelihood import (
    Continuation,
    EncodedExample,
    continuation_losses,
    encode_continuations,
    encode_examples,
    in_length_order,
    predicted_tokens,
    success_losses,
    training_losses,
)
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, LossKind, Split, SuccessCriterion
from tuner.errors import ConfigError, EditError, TaskError
from tuner.evaluation.metrics import METRICS, trusted_metric
from tuner.evaluation.metrics._drawdown import DrawdownMeter, measures_drawdown, refuse_edited
from tuner.evaluation.metrics._free_text import FreeTextMeter
from tuner.evaluation.metrics._sentiment import SentimentMeter
from tuner.evaluation.scores import Interval, Scores
from tuner.evaluation.statistics.grouping import Grouping

_BATCH = 32
# Of a related text; each part is read once more.
_PARTS = 4


@final
@dataclass(frozen=True)
class _Rows:
    """A row set as tokens, with the groups that it is averaged over."""

    encoded: tuple[EncodedExample, ...]
    prompts: tuple[list[int], ...]
    """As a user gives them, who does not know what is to follow."""
    rooms: tuple[int, ...]
    """How many tokens a model may take to say each target."""
    groups: Grouping
    sentiment: SentimentMeter | None

    @classmethod
    def of(cls, model: LanguageModel, rows: Sequence[Example], rule: SuccessCriterion) -> Self:
        encoded, groups = tuple(encode_examples(model, rows)), Grouping.of(rows)
        prompts = tuple(model.encode_prompts([row.prompt for row in rows]))
        alone = model.texts.encode([row.target for row in rows])
        rooms = tuple(
            _room(model, *row)
            for row in zip(prompts, [row.target for row in encoded], map(len, alone), strict=True)
        )
        meter = (
            SentimentMeter(model, encoded, groups) if rule is SuccessCriterion.SENTIMENT else None
        )
        return cls(encoded, prompts, rooms, groups, meter)

    @property
    def targets(self) -> list[Continuation]:
        return [row.target for row in self.encoded]


@final
class SuccessMeter:
    """Judges the model, as it stands at the moment of the call, on one split of a task.

    It is made while the model is unedited: it keeps what the base model predicts for the
    neighbours (rule tokens), for the hard negatives (where drawdown is measured) and for the rows
    in scope (rule sentiment).

    Raises:
        EditError: one of these is to be kept, and the model is edited already.
        TaskError: a row exceeds the model's context.
    """

    def __init__(
        self,
        model: LanguageModel,
        split: Split,
        threshold: float | None = None,
        rule: SuccessCriterion = SuccessCriterion.THRESHOLD,
        metrics: Collection[str] | None = None,
    ) -> None:
        """Judge by the task's criterion, and by some metrics or by default all that are known.

        Raises:
            ConfigError: there is no such metric.
        """
        if rule is SuccessCriterion.THRESHOLD and threshold is None:
            raise ConfigError("Success by the rule threshold needs a threshold, but got none.")
        self._model = model
        self._rule = rule
        self._threshold = math.nan if threshold is None else threshold
        self._loss = split.ood.loss
        self._ood = _Rows.of(model, split.ood.rows, rule)
        self._hard = encode_continuations(
            model, [(row.prompt, row.target) for row in split.hard_negatives.rows]
        )
        passages = _whole(model, [passage.text for passage in split.related])
        self._related = [part for passage in passages for part in _parts(passage)]
        facts = rule is not SuccessCriterion.THRESHOLD
        self._canonical = _Rows.of(model, split.canonical.rows, rule) if facts else None
        near = split.neighbours if facts else ()
        self._near = _Rows.of(model, near, rule) if near else None
        self._free_text = FreeTextMeter(model, split.generations) if split.generations else None
        self._base_predictions: list[Int[Tensor, " target"]] = []
        if self._near is not None and rule is SuccessCriterion.TOKENS:
            refuse_edited(model)
            self._base_predictions = self._predictions(self._near.targets)
        self._drawdown: DrawdownMeter | None = None
        if measures_drawdown(split, rule):
            self._drawdown = DrawdownMeter(model, split.hard_negatives.rows, rule)
        self.model, self.split = model, split
        names = METRICS.names() if metrics is None else metrics
        kinds = {name: trusted_metric(name) for name in names}
        self._metrics = {
            name: kind(model, split, rule)
            for name, kind in kinds.items()
            if kind.is_measured_on(split, rule)
        }

    def success(self) -> Scores:
        """Return the success of the OOD rows, and nothing else.

        Raises:
            EditError: a loss is NaN.
        """
        successes = self._row_successes(self._ood)
        return Scores(success=self._ood.groups.mean(successes), row_success=tuple(successes))

    def scores(self, metrics: Collection[str] | None = None) -> Scores:
        """Return success with all metrics, or with those named and what is measured with them.

        Raises:
            EditError: a loss is NaN.
        """
        scores = self.success()
        readings = _Readings(self, scores.success)
        measured: dict[str, float | None] = {}
        further: dict[str, float] = {}
        for name in self._wanted(metrics):
            value = self._metrics[name].measure(readings)
            if name in Scores.model_fields:
                measured[name] = value
            elif value is not None:
                further[name] = value
        return scores.model_copy(update={**measured, "further": further})

    def _wanted(self, metrics: Collection[str] | None) -> list[str]:
        """Return the metrics to measure: with one of a group, those that cost nothing more."""
        if metrics is None:
            return list(self._metrics)
        groups = {self._metrics[name].group for name in metrics if name in self._metrics} - {None}
        return [
            name
            for name, metric in self._metrics.items()
            if name in metrics or (metric.group in groups and not metric.costly)
        ]

    def gain_interval(self, edited: Scores, base: Scores) -> Interval:
        """Return the interval of the gain in success, resampling records or subjects."""
        differences = np.array(edited.row_success, float) - np.array(base.row_success, float)
        return self._ood.groups.interval(differences)

    def _row_successes(self, rows: _Rows) -> list[float]:
        """Return the success of each row by the task's rule, from 0 to 1."""
        match self._rule:
            case SuccessCriterion.THRESHOLD:
                return [float(met) for met in self._losses(rows) <= self._threshold]
            case SuccessCriterion.LIKELIER:
                return [float(met) for met in self._lead(rows) < 0]
            case SuccessCriterion.TOKENS:
                gold = [torch.tensor(row.ids[row.start :]) for row in rows.targets]
                return _agreement(self._predictions(rows.targets), gold)
            case SuccessCriterion.SEQUENCE:
                gold = [torch.tensor(row.ids[row.start :]) for row in rows.targets]
                shares = _agreement(self._predictions(rows.targets), gold)
                return [float(share == 1) for share in shares]
            case SuccessCriterion.SENTIMENT:
                return [] if rows.sentiment is None else rows.sentiment.successes()

    def _losses(self, rows: _Rows) -> Tensor:
        """Return each row's loss, summed over the target's tokens."""
        return self._in_batches(rows, mean=False, loss=self._loss)

    def _lead(self, rows: _Rows) -> Tensor:
        """Return each target's loss per token minus its contrast's."""
        return self._in_batches(rows, mean=True, loss=LossKind.PREFER)

    @torch.no_grad()
    def _in_batches(self, rows: _Rows, *, mean: bool, loss: LossKind) -> Tensor:
        measure = training_losses if mean else success_losses
        losses = torch.empty(len(rows.encoded))
        for batch in in_length_order([len(row.ids) for row in rows.targets], _BATCH):
            of_batch = measure(
                self._model.network, loss, [rows.encoded[row] for row in batch], self._model.end_id
            )
            losses[batch] = of_batch.float().cpu()
        if torch.isnan(losses).any():
            raise EditError("The edited model's loss on the task is NaN.")
        return losses

    def _predictions(self, rows: Sequence[Continuation]) -> list[Int[Tensor, " target"]]:
        said = [torch.empty(0)] * len(rows)
        for batch in in_length_order([len(row.ids) for row in rows], _BATCH):
            predicted = predicted_tokens(
                self._model.network, [rows[row] for row in batch], self._model.end_id
            )
            for row, tokens in zip(batch, predicted, strict=True):
                said[row] = tokens
        return said

    @torch.no_grad()
    def _mean_loss(self, rows: Sequence[Continuation], *, per_token: bool) -> float | None:
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

    def _exact(self, judged: _Rows) -> float:
        """Return the share of rows whose target the model says by itself.

        It is given the prompt as a user gives it, and what it says is compared as text: a token
        that prompt and target share when they are read together is not known to it, and the same
        words may have other tokens.
        """
        rows, rooms = judged.targets, judged.rooms
        hits = [0.0] * len(rows)
        for batch in self._generated_together(judged.prompts, rooms):
            said = generate_greedily(
                self._model,
                [judged.prompts[row] for row in batch],
                max(rooms[row] for row in batch),
            )
            for row, words in zip(batch, said, strict=True):
                prompt, room = judged.prompts[row], rooms[row]
                hits[row] = float(self._says(prompt, words[:room], rows[row]))
        return judged.groups.mean(hits)

    def _says(self, prompt: Sequence[int], said: Sequence[int], row: Continuation) -> bool:
        """Return whether prompt and some of what was said after it spell a row's text."""
        decode = self._model.tokenizer.decode
        wanted = decode(list(row.ids))
        return decode([*prompt, *said]).startswith(wanted) and any(
            decode([*prompt, *said[:count]]) == wanted for count in range(1, len(said) + 1)
        )

    def _generated_together(
        self, prompts: Sequence[Sequence[int]], rooms: Sequence[int]
    ) -> Iterator[list[int]]:
        """Yield batches of row numbers; those of a batch are all given its largest room.

        Where that would exceed the context, each row stays alone: by itself it fits.
        """
        for batch in in_length_order([len(prompt) for prompt in prompts], 2 * _BATCH):
            longest = max(len(prompts[row]) for row in batch)
            room = max(rooms[row] for row in batch)
            fits = longest + room <= self._model.context_length
            yield from [batch] if fits else [[row] for row in batch]


@final
class _Readings:
    """What metrics read of the model as it stands, each part at most once: see `Readings`."""

    def __init__(self, meter: SuccessMeter, success: float) -> None:
        self._meter = meter
        self.model, self.split = meter.model, meter.split
        self.success = success

    @cached_property
    def exact(self) -> float:
        return self._meter._exact(self._meter._ood)

    @cached_property
    def canonical_success(self) -> float | None:
        rows = self._meter._canonical
        return None if rows is None else rows.groups.mean(self._meter._row_successes(rows))

    @cached_property
    def canonical_exact(self) -> float | None:
        rows = self._meter._canonical
        return None if rows is None else self._meter._exact(rows)

    @cached_property
    def neighbour_success(self) -> float | None:
        rows = self._meter._near
        if rows is None:
            return None
        if self._neighbours_said is None:
            return rows.groups.mean(self._meter._row_successes(rows))
        gold = [torch.tensor(row.ids[row.start :]) for row in rows.targets]
        return rows.groups.mean(_agreement(self._neighbours_said, gold))

    @cached_property
    def neighbour_agreement(self) -> float | None:
        rows, said = self._meter._near, self._neighbours_said
        if rows is None or said is None:
            return None
        return rows.groups.mean(_agreement(said, self._meter._base_predictions))

    @cached_property
    def _neighbours_said(self) -> list[Int[Tensor, " target"]] | None:
        """The predictions of the neighbours' tokens; None where not the tokens are judged."""
        rows = self._meter._near
        if rows is None or self._meter._rule is not SuccessCriterion.TOKENS:
            return None
        return self._meter._predictions(rows.targets)

    @cached_property
    def hard_negative_loss(self) -> float | None:
        return self._meter._mean_loss(self._meter._hard, per_token=False)

    @cached_property
    def related_loss(self) -> float | None:
        return self._meter._mean_loss(self._meter._related, per_token=True)

    @cached_property
    def free_text(self) -> tuple[float | None, ...]:
        meter = self._meter._free_text
        return () if meter is None else tuple(meter.measure())

    @cached_property
    def drawdown(self) -> float | None:
        meter = self._meter._drawdown
        return None if meter is None else meter.measure()


def _room(model: LanguageModel, prompt: Sequence[int], row: Continuation, alone: int) -> int:
    """Return how many tokens a model may take to say a target after a prompt.

    They are as many as the target has there. Where it shares a token with the prompt, the model has
    to say it otherwise; then they are as many as it has alone, if those are more.
    """
    if tuple(prompt) == row.ids[: row.start]:
        return row.target_length
    return max(1, min(max(row.target_length, alone), model.context_length - len(prompt)))


def _whole(model: LanguageModel, texts: Sequence[str]) -> list[Continuation]:
    """Return texts of which all but the first token is judged.

    They begin as the model's texts begin, with a first special token where the family has one.

    Source: the code of Hewitt et al. 2024 (arXiv:2402.06155), which counts predicted tokens.

    Raises:
        TaskError: one exceeds the model's context.
    """
    continuations = []
    for text, ids in zip(texts, model.encode_prompts(texts), strict=True):
        if len(ids) > model.context_length:
            raise TaskError(
                f"A related text of {len(ids)} tokens exceeds the model's context of "
                f"{model.context_length}: {text[:60]!r}…"
            )
        continuations.append(Continuation(ids=tuple(ids), start=1))
    return continuations


def _parts(text: Continuation) -> list[Continuation]:
    """Return a text as parts, each of which goes on from all that is before it.

    Weights say the same of the parts as of the whole. A memory judges prompts, of which a whole
    text has none.
    """
    length = text.target_length
    ends = [text.start + length * part // _PARTS for part in range(_PARTS + 1)]
    return [Continuation(text.ids[:stop], start) for start, stop in pairwise(ends) if start < stop]


def _agreement(said: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """Return for each row the share of places where two token sequences agree."""
    return [int((one == other).sum()) / len(one) for one, other in zip(said, wanted, strict=True)]
