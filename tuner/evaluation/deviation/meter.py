"""How far an edit raises the loss on general text: paired, sequential, with confidence."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

from tuner.backpack import BackpackForCausalLM
from tuner.deltas.memory.memory import MemoryDelta
from tuner.deltas.senses import SenseDelta
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.likelihood import block_losses
from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError, EditError
from tuner.evaluation.deviation.budget import (
    LEANING,
    LEAST_TOKENS_FOR_CERTIFICATE,
    Budget,
    Certificate,
    Deviation,
    Verdict,
    epsilon_name,
)
from tuner.evaluation.deviation.mean_gradient import (
    MeanGradient,
    mean_gradient,
    shipped_mean_gradient,
)
from tuner.evaluation.deviation.memories import MemoryDeviation
from tuner.evaluation.deviation.senses import SenseDeviation
from tuner.evaluation.identity import delta_hash
from tuner.evaluation.statistics.confidence import most_events, sequence_radius
from tuner.files.cache import Cache

_FIRST_CHUNK = 64
_NEXT_CHUNK = 32
# Rare blocks carry much of an edit's cost. That none has come up yet proves nothing, so "within"
# waits for this many blocks that can change; "over" may be said as soon as it is seen.
_LEAST = 128
# Of fewer blocks that can change, neither their spread nor what it has in common with their linear
# part can be told: with a single one the two would seem to agree perfectly.
_LEAST_TO_JUDGE = 32
# Where most verdicts fall, and so where the confidence sequence should be narrowest.
_PLANNED_BLOCKS = 256
# The strength at which the linear part of an edit is seen: small, yet far above rounding.
_STEP = 0.05


@final
class DeviationMeter:
    """Measures deltas of one model on one corpus, against base losses that it keeps.

    Deviation = Σ NLL_edited / Σ NLL_base − 1 over the same tokens, in the same precision, kernels
    and batch shapes, from paired differences per block. Where that alone does not decide, the
    linear part of the edit is left to the mean gradient (see `gradient`), which makes the error
    of small deviations ten times smaller or more at twice the cost per token.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        *,
        confidence: float,
        cache: Cache,
        tokens_per_batch: int = 2048,
    ) -> None:
        self._model = model
        self._corpus = corpus
        self._confidence = confidence
        self._cache = cache
        self._size = max(1, tokens_per_batch // corpus.blocks.shape[1])
        saved = cache.load("base_losses", self._key)
        self._base: Float[Tensor, " blocks"] = (
            torch.empty(0, dtype=torch.float64) if saved is None else saved["losses"]
        )

    def measure(
        self, delta: Delta, epsilons: Iterable[float], *, sure: bool = True, least: int = _LEAST
    ) -> Deviation:
        """Return the deviation of an edit, read until every budget is decided or cannot be.

        With `sure` decided means a verdict; without, a leaning, which steers a search at a tenth
        of the text. What the rest of the corpus would probably not decide either stays
        unresolved, and the reading stops there.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        asked = tuple(epsilons)
        known = len(self._base)
        reading = _DeviationState(delta)
        found = Deviation.none(self._confidence)
        for chunk in self._chunks():
            base = self._base_losses(chunk.stop)
            reading.differences.append(self._rise(delta, chunk))
            reading.could_rise += int(self._changeable(delta, chunk).sum())
            if reading.gradient is not None:
                reading.linear.append(self._linear_rise(reading, chunk))
            found = self._estimate(reading, base)
            if (
                reading.gradient is None
                and reading.could_rise >= _LEAST_TO_JUDGE
                and any(_decision(found, epsilon, sure) is Verdict.UNRESOLVED for epsilon in asked)
            ):
                self._begin_control(reading, chunk.stop)
                found = self._estimate(reading, base)
            if all(self._settled(found, reading, epsilon, sure, least) for epsilon in asked):
                break
        if len(self._base) > known:
            self._cache.save("base_losses", self._key, {"losses": self._base})
        return self._widened(found, reading, base)

    def _widened(
        self, found: Deviation, reading: "_DeviationState", base: Float[Tensor, " blocks"]
    ) -> Deviation:
        """Return what is still sure where hardly any block could change.

        The spread of a few rare events says little of how often they come and what they cost.
        The bounds allow for as many of them as a Poisson count does, each as costly as the
        costliest one seen, or as a whole block where none was seen.
        """
        if reading.could_rise >= min(_LEAST_TO_JUDGE, len(base)):
            return found
        total = float(base.sum())
        seen = float(torch.cat(reading.differences).abs().max())
        costliest = seen if seen > 0 else total / len(base)
        reach = most_events(reading.could_rise, self._confidence) * costliest / total
        error = math.sqrt(reading.could_rise + 1) * seen / total
        return found.model_copy(
            update={
                "standard_error": max(found.standard_error, error),
                "lower": min(found.lower, -reach),
                "upper": max(found.upper, reach),
            }
        )

    def _rise(self, delta: Delta, rows: range) -> Float[Tensor, " blocks"]:
        senses = self._sense_reading
        if isinstance(delta, SenseDelta) and senses is not None:
            return _finite(senses.rises(delta, rows))
        if isinstance(delta, MemoryDelta):
            return _finite(self._memory_reading.rises(delta, rows))
        if not self._changeable(delta, rows).any():
            return torch.zeros(len(rows), dtype=torch.float64)
        # One edited context per chunk: putting a delta in and out is not free on big models.
        with self._model.edited(delta):
            edited = self._losses(rows)
        return _finite(edited - self._base[rows.start : rows.stop])

    def _changeable(self, delta: Delta, rows: range) -> Bool[Tensor, " rows"]:
        if isinstance(delta, MemoryDelta):
            return self._memory_reading.changeable(delta, rows)
        return delta.can_change(self._corpus.blocks[rows.start : rows.stop])

    @cached_property
    def _memory_reading(self) -> MemoryDeviation:
        return MemoryDeviation(self._model, self._corpus.blocks, self._size)

    @cached_property
    def _sense_reading(self) -> SenseDeviation | None:
        """What reads edits of senses by what is known of the base; none for other models."""
        network = self._model.network
        if not isinstance(network, BackpackForCausalLM) or network.backpack.offsets is not None:
            return None
        if network.backpack.memory is None:
            return None
        return SenseDeviation(network, self._corpus.blocks, self._size)

    def _linear_rise(self, reading: "_DeviationState", rows: range) -> Float[Tensor, " blocks"]:
        """Return the part of each block's rise that is linear in the edit's strength.

        With f(α) the rise at strength α, f(h)/h − h·f(1) over 1 − h is the slope at 0 up to the
        third order, whose coefficient shrinks with h.
        """
        small = self._rise(reading.delta.scaled(_STEP), rows)
        whole = torch.cat(reading.differences)[rows.start : rows.stop]
        return (small / _STEP - _STEP * whole) / (1 - _STEP)

    def _begin_control(self, reading: "_DeviationState", stop: int) -> None:
        """Take the noise of the linear part out of a reading from here on, where possible."""
        gradient = self._shipped_gradient
        if gradient is None and isinstance(reading.delta, WeightDelta):
            gradient = self._own_gradient
        mean = None if gradient is None else gradient.along(reading.delta)
        if mean is not None:
            reading.gradient, reading.linear_mean = gradient, mean
            reading.linear.append(self._linear_rise(reading, range(stop)))

    @cached_property
    def _shipped_gradient(self) -> MeanGradient | None:
        return shipped_mean_gradient(self._model, self._corpus)

    @cached_property
    def _own_gradient(self) -> MeanGradient | None:
        return mean_gradient(
            self._model, self._corpus, batch=self._size, cache=self._cache, key=self._key
        )

    def _settled(
        self, found: Deviation, reading: "_DeviationState", epsilon: float, sure: bool, least: int
    ) -> bool:
        """Return whether a budget is decided, or the rest of the corpus would not decide it."""
        total = len(self._corpus.blocks)
        read = found.tokens // self._predicted_per_block
        if read < total and reading.could_rise < min(least, _LEAST_TO_JUDGE):
            return False
        decision = _decision(found, epsilon, sure)
        if decision is Verdict.OVER:
            return True
        # Where most blocks cannot change, reading is nearly free, and few blocks carry the cost.
        if read < total and reading.could_rise < least:
            return False
        if decision is Verdict.WITHIN:
            return True
        radius = reading.least_radius(total, self._confidence if sure else None)
        # Allow half a standard error of slack: the estimate may yet move away from the budget.
        return abs(found.estimate - epsilon) + found.standard_error / 2 < radius

    def certify(self, delta: Delta, epsilon: float) -> Certificate:
        """Return the statement that `delta` keeps `epsilon` on this corpus, or breaks it.

        Others will rely on it, so it never says "within" on less text than
        `least_for_certificate`.
        """
        deviation = self.measure(delta, (epsilon,), least=self.least_for_certificate)
        verdict = deviation.verdict(epsilon)
        enough = deviation.tokens >= self.least_for_certificate * self._predicted_per_block
        return Certificate(
            epsilon=epsilon,
            verdict=verdict if enough or verdict is Verdict.OVER else Verdict.UNRESOLVED,
            deviation=deviation,
            corpus=self._corpus.name,
            corpus_hash=self._corpus.hash,
            delta_hash=delta_hash(delta),
            base_fingerprint=self._model.fingerprint,
        )

    @property
    def least_for_certificate(self) -> int:
        """The blocks without which no certificate holds: 128, and 32,000 tokens."""
        return max(_LEAST, math.ceil(LEAST_TOKENS_FOR_CERTIFICATE / self._predicted_per_block))

    @property
    def _predicted_per_block(self) -> int:
        return int(self._corpus.blocks.shape[1]) - 1

    def noise_floor(self) -> float:
        """Return the deviation that the base model shows from itself.

        The base is run again through the path of an edit, once in the same batch shapes against
        the kept losses and once in halved batches, which changes the kernels' summation order.
        Twice the standard error is added.
        """
        blocks = range(min(_FIRST_CHUNK, len(self._corpus.blocks)))
        base = self._base_losses(blocks.stop)[: blocks.stop]
        floor = 0.0
        for size in (self._size, max(1, self._size // 2)):
            with self._model.edited(WeightDelta({})):
                again = self._losses(blocks, size)
            reading = _DeviationState(WeightDelta({}), [again - base])
            found = self._estimate(reading, base)
            floor = max(floor, abs(found.estimate) + 2 * found.standard_error)
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
                f"{self._model.device.type}: the base model deviates that much from itself. Give "
                "larger budgets, or a more precise dtype."
            )
        return floor

    def _chunks(self) -> Iterator[range]:
        total = len(self._corpus.blocks)
        stop = min(_FIRST_CHUNK, total)
        yield range(stop)
        while stop < total:
            start, stop = stop, min(stop + _NEXT_CHUNK, total)
            yield range(start, stop)

    def _losses(self, rows: range, size: int | None = None) -> Float[Tensor, " blocks"]:
        """Return the losses of some blocks under the weights as they stand, batch by batch."""
        size = size or self._size
        return torch.cat(
            [
                block_losses(
                    self._model.network, self._corpus.blocks[start : min(start + size, rows.stop)]
                )
                for start in range(rows.start, rows.stop, size)
            ]
        )

    def _base_losses(self, count: int) -> Float[Tensor, " blocks"]:
        """Return the base losses of the first `count` blocks, computing those not yet kept."""
        while len(self._base) < count:
            chunk = next(chunk for chunk in self._chunks() if chunk.stop > len(self._base))
            # What is kept always ends with a chunk, so batches keep their shapes.
            self._base = torch.cat([self._base[: chunk.start], self._losses(chunk)])
        return self._base[:count]

    def _estimate(self, reading: "_DeviationState", base: Float[Tensor, " blocks"]) -> Deviation:
        differences = torch.cat(reading.differences)
        count = len(differences)
        mean = base.mean()
        ratio = float(differences.sum() / base.sum())
        # Linearised ratio: its error is the mean of these residuals over the mean base loss.
        residuals = (differences - ratio * base) / mean
        if reading.gradient is not None:
            linear = torch.cat(reading.linear)
            sampled = float(linear.sum() / base.sum())
            noise = (linear - sampled * base) / mean
            power = float(noise @ noise)
            weight = float(residuals @ noise) / power if power > 0 else 0.0
            weight *= reading.gradient.worth(count)
            reading.plain_spread = float(residuals.std(correction=1))
            ratio -= weight * (sampled - reading.linear_mean)
            residuals = residuals - weight * noise
            reading.linear_spread = abs(weight) * float(noise.std(correction=1))
        reading.spread = float(residuals.std(correction=1)) if count > 1 else math.inf
        radius = reading.radius(count, self._confidence)
        gradient = reading.gradient
        return Deviation(
            estimate=ratio,
            standard_error=reading.error(count),
            lower=ratio - radius,
            upper=ratio + radius,
            tokens=count * self._predicted_per_block,
            gradient_tokens=0 if gradient is None else gradient.blocks * self._predicted_per_block,
            confidence=self._confidence,
        )

    @cached_property
    def _key(self) -> dict[str, str | int]:
        return {
            "model": self._model.fingerprint,
            "corpus": self._corpus.hash,
            "dtype": str(self._model.dtype),
            "device": self._model.device_name,
            "attention": self._model.kernel,
            "batch": self._size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


@final
@dataclass
class _DeviationState:
    """What is known of one edit, block by block.

    The linear part of the blocks' rises is a control variate (Cochran 1977, Sampling Techniques,
    §7: the regression estimator): correlated with the rise, and of a mean that `gradient` knows
    from far more text than this edit's reading.
    """

    delta: Delta
    differences: list[Tensor] = field(default_factory=list)
    could_rise: int = 0  # blocks read that the edit can change at all
    gradient: MeanGradient | None = None
    linear: list[Tensor] = field(default_factory=list)
    linear_mean: float = 0.0
    spread: float = math.inf  # per block, of what is sampled
    plain_spread: float = math.inf  # per block, of the rises as they are
    linear_spread: float = 0.0  # per block, of what the gradient knows

    def error(self, count: int) -> float:
        """Return the standard error once `count` blocks are read."""
        return math.hypot(self.spread / math.sqrt(count), self._gradient_error(1.0))

    def radius(self, count: int, confidence: float) -> float:
        """Return the half-width of the confidence sequence once `count` blocks are read."""
        sampled = self.spread * sequence_radius(count, confidence, _PLANNED_BLOCKS)
        if self.gradient is None:
            return sampled
        # As wide as if the linear part had been read on all blocks of the gradient.
        blocks = self.gradient.blocks
        known = sequence_radius(blocks, confidence, blocks) * math.sqrt(blocks)
        return math.hypot(sampled, self._gradient_error(known))

    def least_radius(self, total: int, confidence: float | None) -> float:
        """Return the half-width that the whole corpus promises, at `confidence` or as a leaning."""
        if confidence is None:
            plain, controlled = LEANING * self.plain_spread / math.sqrt(total), self.error(total)
            return min(plain, LEANING * controlled)
        plain = self.plain_spread * sequence_radius(total, confidence, _PLANNED_BLOCKS)
        return min(plain, self.radius(total, confidence))

    def _gradient_error(self, widths: float) -> float:
        blocks = 1 if self.gradient is None else self.gradient.blocks
        return widths * self.linear_spread / math.sqrt(blocks)


def _finite(rises: Tensor) -> Tensor:
    if not torch.isfinite(rises).all():
        raise EditError("The edited model's loss on general text is NaN or infinite.")
    return rises


def _decision(found: Deviation, epsilon: float, sure: bool) -> Verdict:
    return found.verdict(epsilon) if sure else found.leaning(epsilon)
