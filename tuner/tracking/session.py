"""MLflow's client, made brief and quiet for as long as we use it."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from tuner.errors import MissingExtra

# By default MLflow repeats a request for four minutes and waits two for each answer. The thread
# that sends runs has its own, longer patience between passes, so one call may give up early.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_NOISY = ("mlflow", "alembic", "urllib3.connectionpool", "sqlalchemy")


def require_mlflow() -> None:
    """Check that MLflow is installed, without the seconds that importing it takes.

    Raises:
        MissingExtra: it is not.
    """
    if find_spec("mlflow") is None:
        raise MissingExtra("mlflow", "tracking")


@contextmanager
def brief_requests() -> Iterator[None]:
    """Shorten MLflow's patience where the user has not set it, and undo that on exit.

    Enter it in the main thread: the environment is the whole process's.
    """
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in ours.items():
            if os.environ.get(name) == value:
                del os.environ[name]


@contextmanager
def quiet_here() -> Iterator[None]:
    """Drop what MLflow and its libraries log from this thread: it reaches us as exceptions too.

    Other threads, where the user may run MLflow as well, keep their messages.
    """
    import mlflow  # noqa: F401  its handlers, which are to be quietened, exist from here on

    quiet = _NothingFrom(threading.get_ident())
    # A logger's filter sees only what is logged to it directly; its handlers see the children's.
    muted = [logging.getLogger(name) for name in _NOISY]
    targets: list[logging.Filterer] = [*muted, *(h for logger in muted for h in logger.handlers)]
    for target in targets:
        target.addFilter(quiet)
    try:
        yield
    finally:
        for target in targets:
            target.removeFilter(quiet)


class _NothingFrom(logging.Filter):
    """Lets through the messages of all threads but one."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread
