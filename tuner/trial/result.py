"""What a trial gives: its record, with the deltas of its answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from tuner.editing.delta import Delta
from tuner.errors import EditError
from tuner.evaluation.deviation.budget import Deviation
from tuner.trial.records import Answer, Rule, TrialRecord


@final
@dataclass(frozen=True)
class TrialResult:
    """A trial's record, with the deltas of its answers (none where the base is the answer)."""

    record: TrialRecord
    deltas: Mapping[tuple[Rule, float], Delta]

    def at(self, epsilon: float, rule: Rule = Rule.FITTED) -> "TrialAnswer":
        """Return the answer for a budget.

        Raises:
            EditError: the trial failed.
            KeyError: the trial was not run with this budget.
        """
        if self.record.failure is not None:
            raise EditError(self.record.failure)
        return TrialAnswer(self.record.answer(epsilon, rule), self.deltas.get((rule, epsilon)))


@final
@dataclass(frozen=True)
class TrialAnswer:
    """What a trial offers for one budget: the numbers and, unless it is the base, the delta."""

    record: Answer
    delta: Delta | None

    @property
    def success(self) -> float:
        """The share of OOD rows that the edited model gets right."""
        return self.record.success

    @property
    def gain(self) -> float:
        """Success minus the base model's."""
        return self.record.gain

    @property
    def deviation(self) -> Deviation:
        """The rise of the loss on general text."""
        return self.record.deviation
