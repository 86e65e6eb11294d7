"""The interface of samplers."""

from abc import ABC, abstractmethod

from optuna.samplers import BaseSampler


class Sampler(ABC):
    """Makes the Optuna sampler that proposes hyperparameters.

    A subclass is known by its file's name here, by an entry point of the group `tuner.samplers`, or
    as `package.module:Class`. A fresh one is made for every proposal, from a copy of the ledger, so
    that a study that was killed goes on as if it had not been: it must keep nothing between
    proposals, and take all chance from `seed`.
    """

    @classmethod
    @abstractmethod
    def make(cls, seed: int) -> BaseSampler:
        """Return a sampler that maximises the value, and keeps constraints at most at 0.

        A finished trial's constraints are among its `constraints`, as Optuna's own samplers read
        them.
        """
        ...
