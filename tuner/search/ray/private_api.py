"""What tuner uses of Ray beyond its public API, all of it; a test says when Ray has changed it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants, worker

VITAL = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)
"""Ray's processes without which nothing runs."""

_SYSTEM_CONFIG = {
    # Otherwise an agent would tell the figures of Ray's processes to everybody who asks.
    "enable_metrics_collection": False,
    # A node that does not answer for 15 s is lost to others. Here it is only busy, or asleep:
    # whether it lives, its process says.
    "health_check_failure_threshold": 1_000_000,
}


def start_node(address: str, folder: Path, *, workers: int, object_store_bytes: int) -> None:
    """Start Ray on this machine: its node has an address, and its files lie in a folder.

    Raises:
        Exception: Ray does not start.
    """
    with on_loopback():
        ray.init(
            address="local",
            num_cpus=workers,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            _node_ip_address=address,
            _temp_dir=str(folder),
            _system_config=_SYSTEM_CONFIG,
        )


def node_address() -> str:
    """Return where this process's own Ray listens."""
    return str(worker._global_node.node_ip_address)


def ended_processes() -> list[tuple[str, int]]:
    """Return which processes of this process's own Ray have ended, by kind, and their codes."""
    node = worker._global_node
    if node is None:
        return []
    return [(kind, process.returncode) for kind, process in node.dead_processes()]


@contextmanager
def worker_deaths_unprinted() -> Iterator[None]:
    """Keep the deaths of workers off the terminal: Ray prints them whatever its log level is."""
    printer = getattr(worker, "print_to_stdstream", None)
    if printer is None:
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printer


@contextmanager
def on_loopback() -> Iterator[None]:
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
