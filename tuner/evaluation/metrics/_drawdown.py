"""Drawdown: how often predictions change outside the edit's scope."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tuner.editing.likelihood import (
    Continuation,
    continuation_losses,
    encode_continuations,
    in_length_order,
    predicted_log_probs,
    predicted_tokens,
)
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, Split, SuccessCriterion
from tuner.errors import EditError

_BATCH = 32
_Said = TypeVar("_Said")


def measures_drawdown(split: Split, rule: SuccessCriterion) -> bool:
    """Return whether drawdown is defined: there are hard negatives, with all that the rule needs.

    Under the rules threshold and tokens the loss of hard negatives stands for it.
    """
    rows = split.hard_negatives.rows
    match rule:
        case SuccessCriterion.THRESHOLD | SuccessCriterion.TOKENS:
            return False
        case SuccessCriterion.LIKELIER:
            return bool(rows) and all(row.contrast is not None for row in rows)
        case SuccessCriterion.SEQUENCE | SuccessCriterion.SENTIMENT:
            return bool(rows)


def refuse_edited(model: LanguageModel) -> None:
    """Refuse to take what an edited model says for what the base model says.

    Raises:
        EditError: the model is edited.
    """
    # Must be recorded on the base model, or an active edit becomes its own reference.
    if not model.unedited:
        raise EditError(
            "What the base model predicts must be read before an edit is applied: make the meter "
            "outside `model.edited(...)`."
        )


@final
class DrawdownMeter:
    """Compares the model, as it stands at the moment of the call, with what it was at the start.

    Rule sequence: the share of rows whose likeliest tokens at the target's places, the target's
    tokens before them given, are not all those of the base model. Rule likelier: the share of rows
    whose preference between target and contrast is another. Rule sentiment: KL(base || edited) at
    the target's places, per token of all rows, in nats.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §5.2: it is disagreement with the base model,
    not a loss of accuracy.

    Raises:
        EditError: the model is edited already.
        TaskError: a row exceeds the model's context.
    """

    def __init__(
        self, model: LanguageModel, rows: Sequence[Example], rule: SuccessCriterion
    ) -> None:
        refuse_edited(model)
        self._model = model
        self._rule = rule
        self._targets = encode_continuations(model, [(row.prompt, row.target) for row in rows])
        self._contrasts = encode_continuations(
            model,
            [
                (row.prompt, row.contrast)
                for row in rows
                if rule is SuccessCriterion.LIKELIER and row.contrast is not None
            ],
        )
        # KL needs whole distributions; the others need only what they come to.
        self._base_log_probs = self._log_probs() if rule is SuccessCriterion.SENTIMENT else []
        self._base_said = [] if rule is SuccessCriterion.SENTIMENT else self._said()

    def measure(self) -> float:
        """Return the drawdown.

        Raises:
            EditError: what the model says is NaN.
        """
        if self._rule is SuccessCriterion.SENTIMENT:
            return self._divergence()
        pairs = zip(self._base_said, self._said(), strict=True)
        return sum(not torch.equal(before, after) for before, after in pairs) / len(self._targets)

    def _said(self) -> list[Int[Tensor, " places"]]:
        """Return the likeliest tokens of each row, or 1 where its target is the likelier one."""
        if self._rule is SuccessCriterion.SEQUENCE:
            return self._batched(self._targets, predicted_tokens)
        lead = self._mean_losses(self._targets) - self._mean_losses(self._contrasts)
        if torch.isnan(lead).any():
            raise EditError("The edited model's loss on the task is NaN.")
        return list((lead < 0).long()[:, None])

    def _mean_losses(self, rows: Sequence[Continuation]) -> Float[Tensor, " rows"]:
        summed = self._batched(
            rows, lambda network, some, end: list(continuation_losses(network, some, end))
        )
        lengths = torch.tensor([row.target_length for row in rows])
        return torch.stack(summed).cpu() / lengths

    def _log_probs(self) -> list[Float[Tensor, "places vocabulary"]]:
        return self._batched(self._targets, predicted_log_probs)

    def _divergence(self) -> float:
        total = 0.0
        for base, edited in zip(self._base_log_probs, self._log_probs(), strict=True):
            # A token that is impossible in both adds nothing.
            terms = torch.where(base.exp() > 0, base.exp() * (base - edited), 0.0)
            total += float(terms.sum(dtype=torch.float64))
        if math.isnan(total):
            raise EditError("The edited model's predictions on the task are NaN.")
        # Rounding may bring it below 0 where nothing has changed.
        return max(0.0, total / sum(row.target_length for row in self._targets))

    @torch.no_grad()
    def _batched(
        self,
        rows: Sequence[Continuation],
        read: Callable[..., Sequence[_Said]],
    ) -> list[_Said]:
        """Return what `read` says of each row, in the rows' order."""
        by_row: dict[int, _Said] = {}
        for batch in in_length_order([len(row.ids) for row in rows], _BATCH):
            said = read(self._model.network, [rows[row] for row in batch], self._model.end_id)
            by_row |= dict(zip(batch, said, strict=True))
        return [by_row[row] for row in range(len(rows))]
