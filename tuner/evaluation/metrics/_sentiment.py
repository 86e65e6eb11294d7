"""How far a model says the opinions that edits ask for, and not their opposites."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from scipy.special import expit

from tuner.editing.likelihood import (
    Continuation,
    EncodedExample,
    continuation_losses,
    in_length_order,
)
from tuner.editing.model import LanguageModel
from tuner.errors import EditError, TaskError
from tuner.evaluation.metrics._drawdown import refuse_edited
from tuner.evaluation.statistics.grouping import Grouping

_BATCH = 32


@final
class SentimentMeter:
    """Judges rows whose targets are opinions of the wanted sentiment, and contrasts of the other.

    z_sent · z_topic: z_sent = σ(ℓ⁺ − ℓ⁻) is the side that the model takes, and z_topic = min(1,
    exp(ℓ⁺ − ℓ⁺_base)) whether it still speaks of the topic. ℓ is the mean log-likelihood per token
    over all rows of an edit, so that these share one value. The base model itself has about 0.5.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §5.2; there ℓ is a mean over a batch of edits.

    Raises:
        EditError: the model is edited already.
        TaskError: a row has no contrast.
    """

    def __init__(
        self, model: LanguageModel, rows: Sequence[EncodedExample], groups: Grouping
    ) -> None:
        refuse_edited(model)
        contrasts = [row.contrast for row in rows if row.contrast is not None]
        if len(contrasts) < len(rows):
            raise TaskError("Under the rule sentiment each row needs a `contrast`.")
        self._model = model
        self._targets = [row.target for row in rows]
        self._contrasts = contrasts
        self._groups = groups
        self._base = self._log_likelihoods(self._targets)

    def successes(self) -> list[float]:
        """Return z_sent · z_topic of each row's edit, for the model as it stands.

        Raises:
            EditError: a loss is NaN.
        """
        same = self._log_likelihoods(self._targets)
        opposite = self._log_likelihoods(self._contrasts)
        topic = np.exp(np.minimum(same - self._base, 0))
        successes: list[float] = (expit(same - opposite) * topic).tolist()
        return successes

    def _log_likelihoods(self, rows: Sequence[Continuation]) -> np.ndarray:
        """Return ℓ of each row's edit."""
        losses = np.empty(len(rows))
        for batch in in_length_order([len(row.ids) for row in rows], _BATCH):
            with torch.no_grad():
                of_batch = continuation_losses(
                    self._model.network, [rows[row] for row in batch], self._model.end_id
                )
            losses[batch] = of_batch.double().cpu().numpy()
        if np.isnan(losses).any():
            raise EditError("The edited model's loss on the task is NaN.")
        lengths = np.array([row.target_length for row in rows], float)
        return -self._groups.ratio(losses, lengths)
