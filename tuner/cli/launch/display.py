"""A launched study on the terminal: its state, what holds it up, and its driver's words."""

from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

if TYPE_CHECKING:
    from tuner.launch import LaunchedStudy

_STYLES = {"completed": "green", "failed": "red", "refused": "red", "running": "cyan"}


@final
class LaunchDisplay:
    """Shows a launched study: live on a terminal, as lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._study: LaunchedStudy | None = None
        self._trouble: str | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def changed(self, study: "LaunchedStudy") -> None:
        """Show the study as it is now."""
        before, self._study = self._study, study
        if self._console.is_terminal:
            self._draw()
        if before is None or (before.words, before.lost_attempts) != (
            study.words,
            study.lost_attempts,
        ):
            self._console.print(headline(study), soft_wrap=True)
        for words in study.reasons:
            if before is None or words not in before.reasons:
                self._console.print(Text(f"  {words}", style="yellow"), soft_wrap=True)

    def said(self, line: str) -> None:
        """Show a line of the driver."""
        self._console.print(Text(line, style="dim"), soft_wrap=True)

    def troubled(self, words: str | None) -> None:
        """Show that the connection is lost or back; the study does not notice."""
        self._trouble = words
        said = "The connection is back." if words is None else f"{words} Trying again …"
        self._console.print(Text(said, style="yellow"), soft_wrap=True)
        if self._console.is_terminal:
            self._draw()

    def _draw(self) -> None:
        if self._study is not None:
            self._live.update(_picture(self._study, self._trouble))


def headline(study: "LaunchedStudy") -> Text:
    """Return a study's state on one line."""
    style = _STYLES.get(study.state.value, "")
    attempt = (
        f" (attempt {study.attempt} of {study.attempts})"
        if study.lost_attempts and not study.has_ended
        else ""
    )
    return Text.assemble((f"{study.study}: ", "bold"), (study.words, style), attempt)


def _picture(study: "LaunchedStudy", trouble: str | None) -> RenderableType:
    parts: list[RenderableType] = [Spinner("dots", headline(study))]
    parts += [Text(f"  {words}", style="yellow") for words in study.reasons]
    counts: dict[str, int] = {}
    for pod in study.pods:
        kind = f"{pod.role} {pod.phase.lower() or 'new'}"
        counts[kind] = counts.get(kind, 0) + 1
    if counts:
        parts.append(Text("  " + ", ".join(f"{n} {kind}" for kind, n in counts.items()), "dim"))
    if trouble is not None:
        parts.append(Text("  out of touch with the cluster; the study goes on", style="yellow"))
    return Group(*parts)
