"""A search on a disk that is full ends in words, and goes on where it was once there is room."""

import json
from pathlib import Path

import pytest

from tests.support import full_disk
from tests.support.search_world import make_world
from tests.support.small_disk import python_on_small_disk

pytestmark = [pytest.mark.alone, pytest.mark.thorough]


def test_a_full_disk_loses_no_trial_and_doubles_none(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    steps = 2
    done = python_on_small_disk(
        tmp_path / "disk",
        "2m",
        [full_disk.__file__, str(world), str(tmp_path / "disk"), str(steps)],
        timeout_s=900,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    full, last = seen["runs"][:-1], seen["runs"][-1]
    assert full[0]["code"] == 1
    # Wrong input it is not: code 2 is for that.
    assert {run["code"] for run in full} <= {0, 1}
    for run in full:
        assert "Traceback" not in run["said"]
        if run["code"] == 1:
            assert "the disk is full" in run["said"]
    assert last["code"] == 0, last["said"]
    assert seen["trials"] == [[number, "completed"] for number in range(full_disk.TRIALS)]
    assert seen["drafts"] == []
