"""First in, first out: every trial runs to its end."""

from collections.abc import Sequence
from typing import final

from tuner.search.schedulers._scheduler import Curve, Scheduler


@final
class FirstInFirstOut(Scheduler):
    """Prunes nothing."""

    def prunes(self, trial: Curve, others: Sequence[Curve]) -> bool:
        """Return False."""
        return False
