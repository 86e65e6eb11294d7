"""Whose a worker's death was: its own, or that of the node on which it ran."""

from collections.abc import Callable, Sequence
from typing import final

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

_ASK_EVERY_S = 1.0


@final
class WorkerFailures:
    """Tells the workers' own deaths from those that came with a lost node.

    Ray learns of a lost node some seconds late. So all deaths are judged anew with each one, and
    before something is given up for them there is time for it to learn.
    """

    def __init__(self, is_lost: Callable[[str], bool], *, known_within_s: float) -> None:
        """Take what says whether a node is gone, and how long it may take to say so."""
        self._is_lost = is_lost
        self._known_within_s = known_within_s

    def own(self, places: Sequence[str | None], *, most: int) -> int:
        """Return how many deaths, given by their nodes, were the workers' own.

        It takes up to `known_within_s` where more than `most` seem to be.
        """
        asked = Retrying(
            stop=stop_after_delay(self._known_within_s),
            wait=wait_fixed(_ASK_EVERY_S),
            retry=retry_if_result(lambda own: own > most),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        own: int = asked(self._count, places)
        return own

    def _count(self, places: Sequence[str | None]) -> int:
        return sum(place is None or not self._is_lost(place) for place in places)
