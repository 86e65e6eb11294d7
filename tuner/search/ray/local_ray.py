"""A Ray cluster of this machine alone: it listens on loopback, and its files are its user's."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from tenacity import Retrying, stop_after_attempt

from tuner.errors import ClusterError, RayLost
from tuner.search.ray.private_api import VITAL, ended_processes, node_address, start_node

_LOOPBACK = ("127.0.0.1", "::1")
_FOLDER = "r"
_SESSION = f"session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
LONGEST_FOLDER = (103 if sys.platform == "darwin" else 107) - len(f"/{_FOLDER}/{_SESSION}")
"""Bytes that the path of Ray's folder may have, so that those of its sockets are within limits."""

_OBJECT_STORE_BYTES = 128 * 2**20  # only paths and numbers travel
_STARTS = 3
"""How often Ray is started on this machine; it gives its processes 30 s, too few for a busy one."""
_LOOK_EVERY_S = 1.0
_ENDED_AFTER_S = 40.0
"""Ray ends a process that has waited a minute for its control store, with no word to Python."""


def start_local_ray(workers: int, folder: Path) -> None:
    """Start Ray for so many workers, whatever RAY_ADDRESS says; its files lie in `folder`.

    Ray opens its own folder to everybody; it is for `folder` to keep others out.

    Raises:
        ClusterError: Ray would listen beyond loopback.
        Exception: Ray does not start.
    """
    for again in Retrying(stop=stop_after_attempt(_STARTS), reraise=True):
        with again:
            try:
                start_node(
                    _LOOPBACK[0],
                    folder / _FOLDER,
                    workers=workers,
                    object_store_bytes=_OBJECT_STORE_BYTES,
                )
                _check_on_loopback()
            except Exception:
                ray.shutdown()
                raise


def lost_process() -> str | None:
    """Return which process of this machine's own Ray has ended, in words, if any that matters."""
    for kind, code in ended_processes():
        if kind in VITAL:
            return f"{kind}, which {_ending(code)}"
    return None


@contextmanager
def ended_in_words(patience_s: float = _ENDED_AFTER_S) -> Iterator[None]:
    """End the process in words where Ray is lost and the caller, for so long, has not noticed.

    It is then within a call to Ray that would not return, but end the process with a line of
    Ray's log. What a study has finished is on disk at any moment.
    """
    over = threading.Event()

    def watch() -> None:
        noticed = time.monotonic()
        while not over.wait(_LOOK_EVERY_S):
            lost = lost_process()
            if lost is None:
                noticed = time.monotonic()
            elif time.monotonic() - noticed > patience_s:
                sys.stderr.write(f"Error: {lost_for_good(lost)}\n")
                sys.stderr.flush()
                os._exit(RayLost.exit_code)

    watcher = threading.Thread(target=watch, name="tuner-ray-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def lost_for_good(lost: str) -> RayLost:
    """Return the error for a Ray of this machine that is not started again."""
    return RayLost(
        f"Ray on this machine was lost: its {lost}. All finished trials are kept; the same study, "
        "started again, continues there."
    )


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _check_on_loopback() -> None:
    address = node_address()
    if address not in _LOOPBACK:
        raise ClusterError(
            f"Ray {ray.__version__} would listen at {address}, where others can reach it, and not "
            "only at 127.0.0.1. Install the version of Ray that tuner's requirements/dev.txt names."
        )
