"""How a verb ends that is told to stop: by Ctrl-C, another process, or a terminal that closes."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from tuner.cli.output import messages

INTERRUPTED = 130
"""The exit code of a verb that was stopped. What it had done is kept."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end what runs within as Ctrl-C does, in words.

    SIGHUP stays ignored where it is, as by nohup.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # A shell that starts us in the background has us ignore SIGINT; `tuner stop` sends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _stop)
    if before[signal.SIGHUP] is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        messages().print(str(stopped) or "Stopped.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop once: what follows the first signal must not hinder the end that it asked for."""
    for one in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    if number == signal.SIGHUP:
        _leave_terminal()
    raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Discard from now on what would go to a terminal that is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
