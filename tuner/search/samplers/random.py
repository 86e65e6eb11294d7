"""Independent random draws."""

from typing import final

from optuna.samplers import BaseSampler, RandomSampler

from tuner.search.samplers._sampler import Sampler


@final
class Random(Sampler):
    """Draws that learn nothing, as a baseline."""

    @classmethod
    def make(cls, seed: int) -> BaseSampler:
        """Return it."""
        return RandomSampler(seed=seed)
