"""Which hyperparameters to try next, as a pure function of the ledger, the number and a seed.

Optuna's samplers carry state from one proposal to the next, which a killed process loses. Here a
fresh sampler, seeded for the trial's number, looks at a copy of the ledger in memory: a continued
study proposes what an uninterrupted one would have proposed.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.search.samplers import SAMPLERS, chosen_sampler
from tuner.search.space import EDITOR, Space

# How often a proposal that repeats an earlier trial is drawn again: first by the sampler itself,
# then at random. In an exhausted space a repeat is accepted; it runs with another seed.
_REDRAWS = 2
_RANDOM_REDRAWS = 64


@final
class Proposer:
    """Proposes hyperparameters from a space."""

    def __init__(self, space: Space, sampler: str, *, seed: int, per_editor: bool = False) -> None:
        """Propose by the sampler of a name, as `SAMPLERS` knows it; `auto` picks one.

        Raises:
            ConfigError: there is no such sampler.
        """
        self._space = space
        self._seed = seed
        self._per_editor = per_editor and space.conditional
        self.sampler = chosen_sampler(sampler, flat=self._per_editor or not space.conditional)
        """What proposes; never `auto`."""
        self._make = SAMPLERS.find(self.sampler).make
        self._make_random = SAMPLERS.find("random").make

    def propose(self, history: Sequence[FrozenTrial], number: int) -> dict[str, Any]:
        """Return the hyperparameters of trial `number`, given all trials before it.

        No earlier trial is repeated as long as the space has anything else to offer.
        """
        history = [_in_order(one) for one in history]
        editor: str | None = None
        if self._per_editor:
            editor = self._space.branches[number % len(self._space.branches)].name
            history = [_without_editor(one) for one in history if one.params.get(EDITOR) == editor]
        taken = {_key(trial.params) for trial in history}
        proposal: dict[str, Any] = {}
        with quiet_optuna():
            for attempt in range(1 + _REDRAWS + _RANDOM_REDRAWS):
                seed = _seed_for(self._seed, number, attempt)
                sampler = (self._make if attempt <= _REDRAWS else self._make_random)(seed)
                proposal = self._draw(sampler, history, editor)
                distinct = {key: value for key, value in proposal.items() if key != EDITOR}
                if _key(distinct if self._per_editor else proposal) not in taken:
                    break
        return proposal

    def _draw(
        self, sampler: BaseSampler, history: Sequence[FrozenTrial], editor: str | None
    ) -> dict[str, Any]:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(history)
        return self._space.draw(study.ask(), editor=editor)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's remarks about its own progress and experiments off the user's terminal."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)


def _seed_for(seed: int, number: int, attempt: int) -> int:
    return int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])


def _key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def _in_order(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial with its constraints in the order of their names.

    The sampler tells them apart by place, and a database gives them back in any order.
    """
    if len(trial.constraints) < 2:
        return trial
    return create_trial(
        state=trial.state,
        value=trial.value if trial.state is TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        constraints=dict(sorted(trial.constraints.items())),
    )


def _without_editor(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial as a study of one editor would hold it."""
    finished = trial.state is TrialState.COMPLETE
    return create_trial(
        state=trial.state,
        value=trial.value if finished else None,
        params={key: value for key, value in trial.params.items() if key != EDITOR},
        distributions={key: value for key, value in trial.distributions.items() if key != EDITOR},
        constraints=trial.constraints if finished else None,
    )
