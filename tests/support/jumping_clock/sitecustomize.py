"""Python's wall clock, put forward or back by as many seconds as a file says: for tests of jumps.

Ray's own binaries do not start under libfaketime, so only Python's processes see the jump: the
driver, the workers and Ray's agents.
"""

import os
import time
from pathlib import Path

_FILE = Path(os.environ["TUNER_TEST_CLOCK"])
_true_time, _true_time_ns = time.time, time.time_ns


def _jump() -> float:
    try:
        return float(_FILE.read_text())
    except (OSError, ValueError):  # it is being written
        return 0.0


time.time = lambda: _true_time() + _jump()
time.time_ns = lambda: _true_time_ns() + int(_jump() * 1e9)
