"""Asynchronous successive halving: at each rung the best third goes on."""

from collections.abc import Sequence
from typing import final

from tuner.search.schedulers._scheduler import Curve, Scheduler

_REDUCTION = 3


@final
class SuccessiveHalving(Scheduler):
    """Ends what is not in the best third after 1, 3, 9, 27 … epochs.

    Of fewer than three trials at a rung all go on. Nothing waits for others: a trial is compared
    with those that have come to its rung already.

    Source: Li et al. 2020 (arXiv:1810.05934), in the variant that stops trials, as Ray Tune has it;
    Optuna's pruner keeps its rungs in a study's storage, which workers do not see.
    """

    def prunes(self, trial: Curve, others: Sequence[Curve]) -> bool:
        """Return whether the trial is at a rung and not among the best there."""
        epoch = len(trial.values)
        if not _is_rung(epoch):
            return False
        came_here = [curve.values[epoch - 1] for curve in others if len(curve.values) >= epoch]
        at_rung = sorted([*came_here, trial.values[-1]], reverse=True)
        going_on = len(at_rung) // _REDUCTION
        return going_on > 0 and trial.values[-1] < at_rung[going_on - 1]


def _is_rung(epoch: int) -> bool:
    while epoch % _REDUCTION == 0:
        epoch //= _REDUCTION
    return epoch == 1
