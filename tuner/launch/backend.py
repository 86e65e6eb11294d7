"""Where studies are launched: each back end does the same things, whatever is behind it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from tuner.launch.driver_log import LogSource
from tuner.launch.following import FollowObserver
from tuner.launch.status import LaunchedStudy

if TYPE_CHECKING:
    from tuner.search import StudyConfig


class Backend(Protocol):
    """A namespace of Kubernetes, or a Ray cluster that stands already.

    All but `preview` is done within `async with`. It raises a ConfigError where there is no such
    study, or it cannot run there, and a ClusterError where it cannot be reached, or refuses.
    """

    async def __aenter__(self) -> Self:
        """Connect."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """LogSource."""
        ...

    @property
    def option(self) -> str:
        """The option of the command line that leads here."""
        ...

    @property
    def description(self) -> str:
        """What it is called in a sentence."""
        ...

    def preview(self, study: "StudyConfig") -> Sequence[Mapping[str, Any]]:
        """Return what would be sent for a study, checked, without asking it.

        Raises:
            ConfigError: the study cannot run there, or its space does not fit its task.
            TaskError: its task is malformed.
        """
        ...

    async def submit(self, study: "StudyConfig") -> bool:
        """Send a study; return whether that was needed, or it was there already."""
        ...

    async def status(self, name: str) -> LaunchedStudy:
        """Return how far a study is."""
        ...

    async def list_studies(self) -> list[LaunchedStudy]:
        """Return all its studies, without what holds them up."""
        ...

    async def stop(self, name: str, *, wait_s: float) -> LaunchedStudy:
        """Stop a study and return it once it rests, or after `wait_s`."""
        ...

    async def delete(self, name: str, *, wait_s: float) -> None:
        """Take a study and all that belongs to it away; its trials stay in the ledger."""
        ...

    async def resume(self, name: str, *, wait_s: float) -> bool:
        """Have a study go on from its ledger; return whether that was needed."""
        ...

    async def follow(self, name: str, observer: FollowObserver) -> LaunchedStudy:
        """Tell an observer how a study goes on; return it once it rests."""
        ...

    def log_lines(
        self, name: str, part: LogSource, *, follow: bool, tail: int | None = None
    ) -> AsyncGenerator[str]:
        """Yield the lines of a part's log; with `follow`, also those to come."""
        ...
