"""A tree of Parzen estimators that sees the budget as a constraint."""

from typing import final

from optuna.samplers import BaseSampler, TPESampler

from tuner.search.samplers._sampler import Sampler


@final
class TPE(Sampler):
    """Optuna's tree of Parzen estimators; for spaces of several editors, too."""

    @classmethod
    def make(cls, seed: int) -> BaseSampler:
        """Return it."""
        return TPESampler(seed=seed)
