"""One input is read under a limit of CPU time; what came of it has a name."""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType

from tuner.errors import TunerError

CPU_LIMIT_S = 5.0
_WAIT_LIMIT_S = 120.0
_LONGEST_MESSAGE = 6000


class Outcome(StrEnum):
    """What came of an input."""

    ACCEPTED = "accepted"
    REFUSED = "refused in words"
    TRACEBACK = "traceback"
    HANG = "hang"
    ECHO = "echoed whole"
    SECRET = "password shown"

    @property
    def is_failure(self) -> bool:
        """Whether a user should never see it."""
        return self not in (Outcome.ACCEPTED, Outcome.REFUSED)


@dataclass(frozen=True)
class Result:
    """What came of an input, how long it took, and what was said."""

    outcome: Outcome
    cpu_s: float
    said: str = ""


class Refused(Exception):
    """Words of a reader that gives them back instead of raising them."""


class _TooLong(BaseException):
    """The limit is reached. No reader's `except Exception` catches it."""


def run(read: Callable[[], object]) -> Result:
    """Return what came of one call."""
    before = time.process_time()
    try:
        with _limited(), _quiet():
            read()
        outcome, said = Outcome.ACCEPTED, ""
    except (TunerError, Refused) as error:
        said = str(error)
        outcome = Outcome.REFUSED
        if len(said) > _LONGEST_MESSAGE:
            outcome, said = Outcome.ECHO, f"{len(said)} characters: {said[:300]}"
        elif "SESAME" in said:
            outcome = Outcome.SECRET
    except _TooLong as error:
        outcome, said = Outcome.HANG, "".join(traceback.format_tb(error.__traceback__)[-3:])
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-4:])
        outcome, said = Outcome.TRACEBACK, f"{type(error).__name__}: {str(error)[:300]}\n{where}"
    return Result(outcome, time.process_time() - before, said)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, _WAIT_LIMIT_S)  # who waits takes no CPU time
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
