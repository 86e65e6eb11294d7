"""How far an edit raises the loss on general text: paired, sequential, with confidence."""

import math
from collections.abc import Iterable, Iterator
from typing import final

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from tuner.cache import Cache
from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.likelihood import block_losses
from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError, EditError
from tuner.evaluation.budget import LEANING, Budget, Certificate, Deviation, Verdict
from tuner.evaluation.confidence import sequence_radius

_FIRST_CHUNK = 64
_NEXT_CHUNK = 32
# Rare blocks carry much of an edit's cost. That none has come up yet proves nothing, so "within"
# waits for this many blocks; "over" may be said as soon as it is seen.
_LEAST = 128
_LEAST_TOKENS_FOR_CERTIFICATE = 32_000
# Where most verdicts fall, and so where the confidence sequence should be narrowest.
_PLANNED_BLOCKS = 256


@final
class DeviationMeter:
    """Measures deltas of one model on one corpus, against base losses that it keeps.

    Deviation = Σ NLL_edited / Σ NLL_base − 1 over the same tokens, in the same precision, kernels
    and batch shapes, from paired differences per block.
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
        saved = cache.load("base_losses", self._key())
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
        found = Deviation.none(self._confidence)
        for found in self.readings(delta):
            if all(self.settled(found, epsilon, sure=sure, least=least) for epsilon in asked):
                break
        if len(self._base) > known:
            self._cache.save("base_losses", self._key(), {"losses": self._base})
        return found

    def readings(self, delta: Delta) -> Iterator[Deviation]:
        """Yield the deviation as it is known after each chunk of the corpus.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        differences: list[Tensor] = []
        for chunk in self._chunks():
            base = self._base_losses(chunk.stop)
            # One edited context per chunk: putting a delta in and out is not free on big models.
            with self._model.edited(delta):
                edited = self._losses(chunk)
            if not torch.isfinite(edited).all():
                raise EditError("The edited model's loss on general text is NaN or infinite.")
            differences.append(edited - base[chunk.start :])
            yield self._estimate(torch.cat(differences), base)

    def settled(self, found: Deviation, epsilon: float, *, sure: bool, least: int = _LEAST) -> bool:
        """Return whether a budget is decided, or the rest of the corpus would not decide it."""
        total = len(self._corpus.blocks)
        read = found.tokens // self._predicted_per_block
        decision = found.verdict(epsilon) if sure else found.leaning(epsilon)
        if decision is Verdict.OVER:
            return True
        if read < min(total, least):
            return False
        if decision is Verdict.WITHIN:
            return True
        spread = found.standard_error * math.sqrt(read)
        radius = (
            sequence_radius(total, self._confidence, _PLANNED_BLOCKS)
            if sure
            else LEANING / math.sqrt(total)
        )
        # Hopeful by half a standard error: the estimate may yet move away from the budget.
        distance = abs(found.estimate - epsilon) + found.standard_error / 2
        return distance < spread * radius

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
        )

    @property
    def least_for_certificate(self) -> int:
        """The blocks without which no certificate holds: 128, and 32,000 tokens."""
        return max(_LEAST, math.ceil(_LEAST_TOKENS_FOR_CERTIFICATE / self._predicted_per_block))

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
            found = self._estimate(again - base, base)
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
                f"The budget {below[0]:g} is below the noise floor {floor:.1e} of "
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

    def _estimate(
        self, differences: Float[Tensor, " blocks"], base: Float[Tensor, " blocks"]
    ) -> Deviation:
        count = len(differences)
        ratio = float(differences.sum() / base.sum())
        # Linearised ratio: its error is the mean of these residuals over the mean base loss.
        residuals = (differences - ratio * base) / base.mean()
        spread = float(residuals.std(correction=1)) if count > 1 else math.inf
        radius = spread * sequence_radius(count, self._confidence, _PLANNED_BLOCKS)
        return Deviation(
            estimate=ratio,
            standard_error=spread / math.sqrt(count),
            lower=ratio - radius,
            upper=ratio + radius,
            tokens=count * self._predicted_per_block,
            confidence=self._confidence,
        )

    def _key(self) -> dict[str, str | int]:
        device = self._model.device
        return {
            "model": self._model.fingerprint,
            "corpus": self._corpus.hash,
            "dtype": str(self._model.dtype),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "attention": str(self._model.network.config._attn_implementation),
            "batch": self._size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
