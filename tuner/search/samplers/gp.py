"""A Gaussian process that sees the budget as a constraint."""

from typing import final

from optuna.samplers import BaseSampler, GPSampler

from tuner.search.samplers._sampler import Sampler


@final
class GP(Sampler):
    """Optuna's Gaussian process with constrained expected improvement; for flat spaces."""

    @classmethod
    def make(cls, seed: int) -> BaseSampler:
        """Return it."""
        return GPSampler(seed=seed)
