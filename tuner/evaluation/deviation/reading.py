"""What the blocks read so far say of an edit: estimates, and how sure they are."""

import math
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tuner.editing.delta import Delta
from tuner.evaluation.deviation.budget import LEANING, Deviation, Divergence
from tuner.evaluation.deviation.mean_gradient import MeanGradient
from tuner.evaluation.statistics.confidence import most_events, sequence_radius

LEAST_TO_JUDGE = 32
"""Of fewer blocks that can change, neither their spread nor what it has in common with their linear
part can be told: with a single one the two would seem to agree perfectly."""
# Where most verdicts fall, and so where the confidence sequence should be narrowest.
_PLANNED_TOKENS, _FEWEST_PLANNED = 16_384, 64


@final
@dataclass(frozen=True)
class ReadingPlan:
    """What is the same for every reading of one corpus."""

    confidence: float
    predicted_per_block: int
    two_sided: bool = False
    divergence: float | None = None
    """The most divergence that is allowed; None where it is only reported."""

    @property
    def planned_blocks(self) -> int:
        """The number of blocks after which most verdicts fall."""
        return max(_FEWEST_PLANNED, _PLANNED_TOKENS // max(64, self.predicted_per_block + 1))


@final
@dataclass
class Reading:
    """What is known of one edit, block by block.

    The linear part of the blocks' rises is a control variate (Cochran 1977, Sampling Techniques,
    §7: the regression estimator): correlated with the rise, and of a mean that `gradient` knows
    from far more text than this edit's reading.
    """

    plan: ReadingPlan
    delta: Delta
    differences: list[Tensor] = field(default_factory=list)
    divergences: list[Tensor] = field(default_factory=list)
    """Of the first blocks only, where the divergence is only reported."""
    could_rise: int = 0  # blocks read that the edit can change at all
    gradient: MeanGradient | None = None
    linear: list[Tensor] = field(default_factory=list)
    linear_mean: float = 0.0
    spread: float = math.inf  # per block, of what is sampled
    plain_spread: float = math.inf  # per block, of the rises as they are
    linear_spread: float = 0.0  # per block, of what the gradient knows
    divergence_spread: float = math.inf  # per block, in nats per token

    def estimate(self, base: Float[Tensor, " blocks"]) -> Deviation:
        """Return what the blocks read so far say; `base` are the base model's losses on them."""
        differences = torch.cat(self.differences)
        count = len(differences)
        mean = base.mean()
        ratio = float(differences.sum() / base.sum())
        # Linearised ratio: its error is the mean of these residuals over the mean base loss.
        residuals = (differences - ratio * base) / mean
        if self.gradient is not None:
            linear = torch.cat(self.linear)
            sampled = float(linear.sum() / base.sum())
            noise = (linear - sampled * base) / mean
            power = float(noise @ noise)
            weight = float(residuals @ noise) / power if power > 0 else 0.0
            weight *= self.gradient.worth(count)
            self.plain_spread = float(residuals.std(correction=1))
            ratio -= weight * (sampled - self.linear_mean)
            residuals = residuals - weight * noise
            self.linear_spread = abs(weight) * float(noise.std(correction=1))
        self.spread = float(residuals.std(correction=1)) if count > 1 else math.inf
        radius = self.radius(count, self.plan.confidence)
        gradient = self.gradient
        return Deviation(
            estimate=ratio,
            standard_error=self.error(count),
            lower=ratio - radius,
            upper=ratio + radius,
            tokens=count * self.plan.predicted_per_block,
            gradient_tokens=0
            if gradient is None
            else gradient.blocks * self.plan.predicted_per_block,
            confidence=self.plan.confidence,
            two_sided=self.plan.two_sided,
            divergence=self._divergence(),
        )

    def _divergence(self) -> Divergence | None:
        if not self.divergences:
            return None
        values = torch.cat(self.divergences) / self.plan.predicted_per_block
        count, mean = len(values), float(values.mean())
        self.divergence_spread = float(values.std(correction=1)) if count > 1 else math.inf
        radius = self.divergence_spread * sequence_radius(
            count, self.plan.confidence, self.plan.planned_blocks
        )
        return Divergence(
            estimate=mean,
            standard_error=self.divergence_spread / math.sqrt(count),
            lower=max(0.0, mean - radius),
            upper=mean + radius,
            tokens=count * self.plan.predicted_per_block,
            limit=self.plan.divergence,
        )

    def widened(self, deviation: Deviation, base: Float[Tensor, " blocks"]) -> Deviation:
        """Return what is still sure where hardly any block could change.

        The spread of a few rare events says little of how often they come and what they cost.
        The bounds allow for as many of them as a Poisson count does, each as costly as the
        costliest one seen, or as a whole block where none was seen.
        """
        if self.could_rise >= min(LEAST_TO_JUDGE, len(base)):
            return deviation
        total = float(base.sum())
        seen = float(torch.cat(self.differences).abs().max())
        costliest = seen if seen > 0 else total / len(base)
        events = most_events(self.could_rise, self.plan.confidence)
        reach = events * costliest / total
        error = math.sqrt(self.could_rise + 1) * seen / total
        return deviation.model_copy(
            update={
                "standard_error": max(deviation.standard_error, error),
                "lower": min(deviation.lower, -reach),
                "upper": max(deviation.upper, reach),
                "divergence": self._widened_divergence(deviation.divergence, events),
            }
        )

    def _widened_divergence(
        self, divergence: Divergence | None, events: float
    ) -> Divergence | None:
        if divergence is None:
            return None
        read = torch.cat(self.divergences)
        # Of a block that was never seen to change, as much as one nat at each of its tokens.
        costliest = float(read.max()) or float(self.plan.predicted_per_block)
        reach = events * costliest / (len(read) * self.plan.predicted_per_block)
        return divergence.model_copy(
            update={"lower": 0.0, "upper": max(divergence.upper, divergence.estimate + reach)}
        )

    def error(self, count: int) -> float:
        """Return the standard error once `count` blocks are read."""
        return math.hypot(self.spread / math.sqrt(count), self._gradient_error(1.0))

    def radius(self, count: int, confidence: float) -> float:
        """Return the half-width of the confidence sequence once `count` blocks are read."""
        sampled = self.spread * sequence_radius(count, confidence, self.plan.planned_blocks)
        if self.gradient is None:
            return sampled
        # As wide as if the linear part had been read on all blocks of the gradient.
        blocks = self.gradient.blocks
        known = sequence_radius(blocks, confidence, blocks) * math.sqrt(blocks)
        return math.hypot(sampled, self._gradient_error(known))

    def hopeless(self, deviation: Deviation, epsilon: float, total: int, *, sure: bool) -> bool:
        """Return whether all `total` blocks would probably not place the rise against a budget."""
        radius = self._least_radius(total, self.plan.confidence if sure else None)
        # Allow half a standard error of slack: the estimate may yet move away from the budget.
        slack = deviation.standard_error / 2
        return abs(deviation.size - epsilon) + slack < radius

    def divergence_hopeless(self, divergence: Divergence, total: int, *, sure: bool) -> bool:
        """Return whether all `total` blocks would probably not place the divergence."""
        if divergence.limit is None:
            return True
        width = LEANING / math.sqrt(total)
        if sure:
            width = sequence_radius(total, self.plan.confidence, self.plan.planned_blocks)
        slack = divergence.standard_error / 2
        return abs(divergence.estimate - divergence.limit) + slack < self.divergence_spread * width

    def _least_radius(self, total: int, confidence: float | None) -> float:
        """Return the half-width that the whole corpus promises, at `confidence` or as a leaning."""
        if confidence is None:
            plain, controlled = LEANING * self.plain_spread / math.sqrt(total), self.error(total)
            return min(plain, LEANING * controlled)
        plain = self.plain_spread * sequence_radius(total, confidence, self.plan.planned_blocks)
        return min(plain, self.radius(total, confidence))

    def _gradient_error(self, widths: float) -> float:
        blocks = 1 if self.gradient is None else self.gradient.blocks
        return widths * self.linear_spread / math.sqrt(blocks)
