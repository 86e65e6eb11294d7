"""A driver is killed again and again, and the study comes to the same end as if it had not been."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import search_world
from tests.support.search_world import make_world, tiny_config
from tuner.search import Study, StudyResult
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger

pytestmark = pytest.mark.alone

# Each kill comes when so many trials have ended, and a little later, so that the moments lie all
# over the study: before the first trial, within trials, between them, after the last.
_THREE = ((0, 1.3), (2, 0.3), (4, 0.1))
_TEN = ((0, 0.0), (0, 1.3), (1, 0.0), (2, 0.3), (4, 0.1), (5, 0.6), (7, 0.2), (9, 0.05), (11, 0.4))
_TEN += ((14, 0.3),)


def _start(world: Path, studies: Path, trials: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, search_world.__file__, str(world), str(studies), str(trials)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _finished_trials(folder: StudyFolder) -> int:
    return len(list(folder.trials.glob("[0-9]*/record.json")))


def _essence(result: StudyResult) -> list[tuple[int, str, dict[str, object], object]]:
    return [
        (entry.number, str(entry.state), entry.parameters, entry.record and entry.record.answers)
        for entry in result.trials
    ]


@pytest.mark.parametrize(
    ("trials", "moments"),
    [
        pytest.param(6, _THREE, id="three"),
        pytest.param(14, _TEN, id="ten", marks=pytest.mark.thorough),
    ],
)
def test_a_driver_killed_at_any_moment_loses_and_repeats_nothing(
    trials: int, moments: tuple[tuple[int, float], ...], tmp_path: Path, shared_ray: str
) -> None:
    world = make_world(tmp_path / "world")
    # What is killed has a Ray of its own, as a search on this machine; what runs through has not.
    config = tiny_config(world, trials, address=shared_ray)
    whole = Study(config, folder=tmp_path / "whole").run()
    folder = StudyFolder(tmp_path / "killed" / "tiny")
    deaths = 0
    for ended, pause in moments:
        driver = _start(world, tmp_path / "killed", trials)
        deadline = time.monotonic() + 300
        while driver.poll() is None and time.monotonic() < deadline:
            if folder.journal.exists() and _finished_trials(folder) >= ended:
                time.sleep(pause)
                break
            time.sleep(0.02)
        if driver.poll() is None:
            driver.kill()
            deaths += 1
        driver.wait()
        if folder.journal.exists():
            numbers = [entry.number for entry in Ledger.read(folder, "tiny").history()]
            assert numbers == list(range(len(numbers)))
    # On a quick machine the last may come too late.
    assert deaths >= len(moments) - 1
    continued = Study(config, folder=tmp_path / "killed").run()
    assert _essence(continued) == _essence(whole)
    assert [one.trial for one in continued.record.winners] == [
        one.trial for one in whole.record.winners
    ]
    assert [one.test_gain for one in continued.record.winners] == [
        one.test_gain for one in whole.record.winners
    ]
