"""Median stopping: a trial ends where it does worse than half of those before it."""

from collections.abc import Sequence
from typing import final

import optuna
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tuner.search.proposer import quiet_optuna
from tuner.search.schedulers._scheduler import Curve, Scheduler
from tuner.trial.records import TrialState

_COMPLETED_BEFORE = 5
_FIRST_EPOCH = 2


@final
class Median(Scheduler):
    """Optuna's median rule, from the second epoch on and once five trials have completed.

    Source: Golovin et al. 2017 (Google Vizier), §3.2.2, as Optuna has it: the best value of a trial
    so far is compared with the median of the others' values after the same epoch.
    """

    def prunes(self, trial: Curve, others: Sequence[Curve]) -> bool:
        """Return whether the trial is below the median."""
        pruner = MedianPruner(n_startup_trials=_COMPLETED_BEFORE, n_warmup_steps=_FIRST_EPOCH)
        with quiet_optuna():
            study = optuna.create_study(direction="maximize")
            study.add_trials([_frozen(curve) for curve in (*others, trial)])
            return bool(pruner.prune(study, study.get_trials(deepcopy=False)[-1]))


def _frozen(curve: Curve) -> FrozenTrial:
    completed = curve.state is TrialState.COMPLETED
    return create_trial(
        state=OptunaState.COMPLETE if completed else OptunaState.RUNNING,
        value=curve.values[-1] if completed else None,
        intermediate_values=dict(enumerate(curve.values, start=1)),
    )
