"""How far an edit changes general text: paired, sequential, with confidence."""

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError
from tuner.evaluation.deviation.block_reader import BlockReader
from tuner.evaluation.deviation.budget import (
    LEAST_TOKENS_FOR_CERTIFICATE,
    Budget,
    Certificate,
    Deviation,
    Verdict,
    epsilon_name,
)
from tuner.evaluation.deviation.mean_gradient import (
    PRECISE,
    MeanGradient,
    shipped_mean_gradient,
)
from tuner.evaluation.deviation.reading import LEAST_TO_JUDGE, Reading, ReadingPlan
from tuner.evaluation.deviation.rounding import rounding_noise
from tuner.evaluation.deviation.slopes import has_slopes
from tuner.evaluation.identity import delta_hash
from tuner.files.cache import Cache

# Rare blocks carry much of an edit's cost. That none has come up yet proves nothing, so "within"
# waits for this much text that can change; "over" may be said as soon as it is seen.
_LEAST_TOKENS = 8192
# The strength at which the linear part of an edit is seen: small, yet far above rounding.
_STEP = 0.05


@final
class DeviationMeter:
    """Measures deltas of one model on one corpus, against base losses that it keeps.

    Deviation = Σ NLL_edited / Σ NLL_base − 1 over the same tokens, in the same precision, kernels
    and batch shapes, from paired differences per block. Where that alone does not decide, the
    linear part of the edit is left to the mean gradient (see `gradient`), which makes the error
    of small deviations ten times smaller or more at twice the cost per token.

    The divergence is measured in the same pass: on as much text as it takes where `divergence`
    limits it, and on the first few thousand tokens where it is only reported.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        *,
        confidence: float,
        cache: Cache,
        two_sided: bool = False,
        divergence: float | None = None,
        gradient_of: Callable[[Delta], MeanGradient | None] | None = None,
        tokens_per_batch: int = 2048,
    ) -> None:
        """Make a meter; `gradient_of` gives the mean gradient on other text of the same source."""
        self._model = model
        self._corpus = corpus
        self._gradient_of = gradient_of
        self._reader = BlockReader(model, corpus, cache=cache, tokens_per_batch=tokens_per_batch)
        self._plan = ReadingPlan(
            confidence, self._reader.predicted_per_block, two_sided, divergence
        )
        self._least = self._reader.blocks_of(_LEAST_TOKENS, LEAST_TO_JUDGE)

    def measure(
        self,
        delta: Delta,
        epsilons: Iterable[float],
        *,
        sure: bool = True,
        least: int | None = None,
    ) -> Deviation:
        """Return the deviation of an edit, read until every budget is decided or cannot be.

        With `sure` decided means a verdict; without, a leaning, which steers a search at a tenth
        of the text. No verdict `within` comes before `least` blocks. What the rest of the corpus
        would probably not decide either stays unresolved, and the reading stops there.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        asked = tuple(epsilons)
        least = self._least if least is None else least
        # One chunk is enough to report a divergence that steers nothing.
        diverging = least if sure else 1
        if self._plan.divergence is not None:
            diverging = len(self._corpus.blocks)
        reading = Reading(self._plan, delta)
        deviation = Deviation.none(self._plan.confidence)
        for chunk in self._reader.chunks:
            base = self._reader.base_losses(chunk.stop)
            if chunk.start < diverging:
                changes = self._reader.changes(delta, chunk)
                reading.differences.append(changes.losses)
                reading.divergences.append(changes.divergences)
            else:
                reading.differences.append(self._reader.rises(delta, chunk))
            reading.could_rise += int(self._reader.changeable(delta, chunk).sum())
            if reading.gradient is not None:
                reading.linear.append(self._linear_rise(reading, chunk))
            deviation = reading.estimate(base)
            if (
                reading.gradient is None
                and reading.could_rise >= LEAST_TO_JUDGE
                and any(_rise_unplaced(deviation, epsilon, sure) for epsilon in asked)
            ):
                self._begin_control(reading, chunk.stop)
                deviation = reading.estimate(base)
            if all(self._settled(deviation, reading, epsilon, sure, least) for epsilon in asked):
                break
        self._reader.save()
        return reading.widened(deviation, base)

    def _linear_rise(self, reading: Reading, rows: range) -> Float[Tensor, " blocks"]:
        """Return the part of each block's rise that is linear in the edit's strength.

        With f(α) the rise at strength α, f(h)/h − h·f(1) over 1 − h is the slope at 0 up to the
        third order, whose coefficient shrinks with h. In half precision so small a step is lost in
        rounding, and the slope is taken by differentiation.
        """
        if self._model.dtype not in PRECISE:
            return self._reader.slopes(reading.delta, rows)
        small = self._reader.rises(reading.delta.scaled(_STEP), rows)
        whole = torch.cat(reading.differences)[rows.start : rows.stop]
        return (small / _STEP - _STEP * whole) / (1 - _STEP)

    def _begin_control(self, reading: Reading, stop: int) -> None:
        """Take the noise of the linear part out of a reading from here on, where possible."""
        gradient = self._shipped_gradient
        if gradient is None and self._gradient_of is not None:
            gradient = self._gradient_of(reading.delta)
        mean = None if gradient is None else gradient.along(reading.delta)
        if mean is not None and self._has_slopes(reading.delta):
            reading.gradient, reading.linear_mean = gradient, mean
            reading.linear.append(self._linear_rise(reading, range(stop)))

    def _has_slopes(self, delta: Delta) -> bool:
        return self._model.dtype in PRECISE or has_slopes(self._model.network, delta)

    @cached_property
    def _shipped_gradient(self) -> MeanGradient | None:
        return shipped_mean_gradient(self._model, self._corpus)

    def _settled(
        self, deviation: Deviation, reading: Reading, epsilon: float, sure: bool, least: int
    ) -> bool:
        """Return whether a budget is decided, or the rest of the corpus would not decide it."""
        total = len(self._corpus.blocks)
        read = deviation.tokens // self._plan.predicted_per_block
        if read < total and reading.could_rise < min(least, LEAST_TO_JUDGE):
            return False
        decision = deviation.verdict(epsilon) if sure else deviation.leaning(epsilon)
        if decision is Verdict.OVER:
            return True
        # Where most blocks cannot change, reading is nearly free, and few blocks carry the cost.
        if read < total and reading.could_rise < least:
            return False
        if decision is Verdict.WITHIN:
            return True
        rise_open = _rise_unplaced(deviation, epsilon, sure)
        if rise_open and not reading.hopeless(deviation, epsilon, total, sure=sure):
            return False
        divergence = deviation.divergence
        if divergence is None:
            return True
        placed = divergence.verdict() if sure else divergence.leaning()
        return placed is not Verdict.UNRESOLVED or reading.divergence_hopeless(
            divergence, total, sure=sure
        )

    def certify(self, delta: Delta, epsilon: float) -> Certificate:
        """Return the statement that `delta` keeps `epsilon` on this corpus, or breaks it.

        Others will rely on it, so it never says "within" on less text than
        `least_for_certificate`.
        """
        deviation = self.measure(delta, (epsilon,), least=self.least_for_certificate)
        verdict = deviation.verdict(epsilon)
        enough = deviation.tokens >= self.least_for_certificate * self._plan.predicted_per_block
        return Certificate(
            epsilon=epsilon,
            verdict=verdict if enough or verdict is Verdict.OVER else Verdict.UNRESOLVED,
            deviation=deviation,
            form=delta.form(self._model.network),
            corpus=self._corpus.name,
            corpus_hash=self._corpus.hash,
            delta_hash=delta_hash(delta),
            base_fingerprint=self._model.fingerprint,
        )

    @property
    def least_for_certificate(self) -> int:
        """The blocks without which no certificate holds: 32,000 tokens in 32 blocks at least."""
        tokens = LEAST_TOKENS_FOR_CERTIFICATE / self._plan.predicted_per_block
        return max(self._least, math.ceil(tokens))

    def noise_floor(self) -> float:
        """Return the deviation that rounding alone can show.

        The base model is run again on the first blocks with its embeddings moved by as much as
        their rounding, in the batch shapes in use and in halved batches, which changes the order
        of the kernels' sums. Twice the standard error is added.
        """
        blocks = self._reader.chunks[0]
        base = self._reader.base_losses(blocks.stop)
        floor = 0.0
        for seed, size in enumerate((self._reader.batch, max(1, self._reader.batch // 2))):
            with rounding_noise(self._model.network, seed=seed):
                again = self._reader.losses(blocks, size)
            nothing = Reading(self._plan, WeightDelta({}), [again - base]).estimate(base)
            floor = max(floor, abs(nothing.estimate) + 2 * nothing.standard_error)
        return floor

    def check_budget(self, budget: Budget) -> float:
        """Return the noise floor, once it is known that every budget lies above it.

        Raises:
            ConfigError: a budget is below what this model, precision and device can resolve.
        """
        floor = self.noise_floor()
        below = [epsilon for epsilon in budget.epsilons if epsilon <= floor]
        if below:
            raise ConfigError(
                f"The budget {epsilon_name(below[0])} is below the noise floor {floor:.1e} of "
                f"{self._model.id} in {str(self._model.dtype).removeprefix('torch.')} on "
                f"{self._model.device.type}: rounding alone can move the loss so far. Give "
                "larger budgets, or a more precise dtype."
            )
        return floor


def _rise_unplaced(deviation: Deviation, epsilon: float, sure: bool) -> bool:
    placed = deviation.rise_verdict(epsilon) if sure else deviation.rise_leaning(epsilon)
    return placed is Verdict.UNRESOLVED
