"""A running study on the terminal: bar, counts, the incumbent per budget, the time left."""

import time
from contextlib import suppress
from types import TracebackType
from typing import Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.cli.output import make_table, show_deviation, show_divergence, show_seconds
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.search import Progress, StudyPhase

_WORDS = {
    StudyPhase.STARTING: "Starting workers",
    StudyPhase.SEARCH: "Searching",
    StudyPhase.CONFIRM: "Certifying on fresh text",
    StudyPhase.RETEST: "Retraining on the test split",
    StudyPhase.FINISHED: "Finished",
}
# Without a terminal a line now and then is enough for a log file.
_LINE_EVERY_S = 15.0


@final
class StudyDisplay:
    """Shows `Progress` snapshots: live on a terminal, as lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._last_line = -_LINE_EVERY_S
        self._last_phase: StudyPhase | None = None
        self._terminal_is_gone = False

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
        with suppress(OSError):
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show a snapshot; a terminal that was closed does not hurt the study."""
        if self._terminal_is_gone:
            return
        try:
            self._show(progress)
        except OSError:
            self._terminal_is_gone = True

    def _show(self, progress: Progress) -> None:
        if self._console.is_terminal:
            self._live.update(_picture(progress))
            return
        now = time.monotonic()
        if progress.phase is self._last_phase and now - self._last_line < _LINE_EVERY_S:
            return
        self._last_phase, self._last_line = progress.phase, now
        self._console.print(_line(progress), soft_wrap=True)


def _line(progress: Progress) -> str:
    best = ", ".join(
        f"ε={epsilon_name(incumbent.epsilon)}: {incumbent.gain:+.2f}"
        for incumbent in progress.incumbents
    )
    return f"{_head(progress)} · {_counts(progress)}" + (f" · gain {best}" if best else "")


def _head(progress: Progress) -> str:
    return (
        f"{_WORDS[progress.phase]} · {show_seconds(progress.elapsed_s)} elapsed, "
        f"{show_seconds(progress.eta_s)} left"
    )


def _counts(progress: Progress) -> str:
    if progress.jobs_total and progress.phase is not StudyPhase.SEARCH:
        return f"{progress.jobs_done}/{progress.jobs_total} jobs"
    pruned = f"{progress.pruned} pruned, " if progress.pruned else ""
    return (
        f"{progress.done}/{progress.total} trials done, {progress.running} running, "
        f"{pruned}{progress.failed} failed, {progress.over_budget} over budget"
    )


def _picture(progress: Progress) -> RenderableType:
    after = progress.jobs_total and progress.phase is not StudyPhase.SEARCH
    done, total = (
        (progress.jobs_done, progress.jobs_total) if after else (progress.done, progress.total)
    )
    parts: list[RenderableType] = [
        Text(_head(progress), style="bold"),
        ProgressBar(total=max(total, 1), completed=done),
        Text(_counts(progress)),
    ]
    if progress.incumbents:
        parts.append(_incumbents(progress))
    return Group(*parts)


def _incumbents(progress: Progress) -> Table:
    columns = ("ε", "best trial", "success", "gain", "deviation", "divergence")
    table = make_table("Best so far", columns, right=columns[1:])
    for incumbent in progress.incumbents:
        table.add_row(
            epsilon_name(incumbent.epsilon),
            f"#{incumbent.trial}",
            f"{incumbent.success:.3f}",
            f"{incumbent.gain:+.3f}",
            show_deviation(incumbent.deviation),
            show_divergence(incumbent.deviation),
        )
    return table
