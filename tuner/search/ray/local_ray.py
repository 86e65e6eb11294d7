"""A Ray cluster of this machine alone: it listens on loopback, and its files are its user's."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants
from tenacity import Retrying, stop_after_attempt

from tuner.errors import ClusterError, RayLost

_LOOPBACK = ("127.0.0.1", "::1")
_FOLDER = "r"
_SESSION = f"session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
LONGEST_FOLDER = (103 if sys.platform == "darwin" else 107) - len(f"/{_FOLDER}/{_SESSION}")
"""Bytes that the path of Ray's folder may have, so that those of its sockets are within limits."""

_OBJECT_STORE_BYTES = 128 * 2**20  # only paths and numbers travel
_STARTS = 3
"""How often Ray is started on this machine; it gives its processes 30 s, too few for a busy one."""
_SYSTEM_CONFIG = {
    # Otherwise an agent would tell the figures of Ray's processes to everybody who asks.
    "enable_metrics_collection": False,
    # A node that does not answer for 15 s is lost to others. Here it is only busy, or asleep:
    # whether it lives, its process says.
    "health_check_failure_threshold": 1_000_000,
}
_LOOK_EVERY_S = 1.0
_ENDED_AFTER_S = 40.0
"""Ray ends a process that has waited a minute for its control store, with no word to Python."""
_VITAL = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)


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
                with _on_loopback():
                    ray.init(
                        address="local",
                        num_cpus=workers,
                        object_store_memory=_OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                        _node_ip_address=_LOOPBACK[0],
                        _temp_dir=str(folder / _FOLDER),
                        _system_config=_SYSTEM_CONFIG,
                    )
                _check_on_loopback()
            except Exception:
                ray.shutdown()
                raise


def lost_process() -> str | None:
    """Return which process of this machine's own Ray has ended, in words, if any that matters."""
    node = ray._private.worker._global_node
    if node is None:
        return None
    for name, process in node.dead_processes():
        if name in _VITAL:
            return f"{name}, which {_ending(process.returncode)}"
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


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take the loopback address for its node's own, and bind all its servers to it.

    Without this it puts the machine's outer address in its place, and listens on all interfaces.
    It is what Ray does by itself on macOS, and on others if `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`
    was 0 when it was imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _check_on_loopback() -> None:
    address = ray._private.worker._global_node.node_ip_address
    if address not in _LOOPBACK:
        raise ClusterError(
            f"Ray {ray.__version__} would listen at {address}, where others can reach it, and not "
            "only at 127.0.0.1. Install the version of Ray that tuner's constraints.txt names."
        )
