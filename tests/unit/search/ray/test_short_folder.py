import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.errors import ConfigError
from tuner.search.ray import short_folder as module
from tuner.search.ray.short_folder import short_folder

_NAME = "tuner-ray-abcdefg_"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A long and a short place for temporary files, the long one first."""
    long, short = tmp_path / ("long" * 10), tmp_path / "s"
    long.mkdir()
    short.mkdir()
    monkeypatch.setattr(module, "_places", lambda: [long, short])
    return long, short


def _room(place: Path) -> int:
    return len(str(place)) + len("/") + len(_NAME)


def test_the_users_choice_is_taken_where_it_is_short_enough(places: tuple[Path, Path]) -> None:
    with short_folder(_room(places[0])) as folder:
        assert folder.parent == places[0]
        assert len(str(folder)) == _room(places[0])


def test_a_short_place_is_taken_where_the_usual_one_is_too_long(
    places: tuple[Path, Path],
) -> None:
    with short_folder(_room(places[0]) - 1) as folder:
        assert folder.parent == places[1]


def test_lengths_are_counted_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = tmp_path / ("é" * 4)
    wide.mkdir()
    monkeypatch.setattr(module, "_places", lambda: [wide])
    with pytest.raises(ConfigError, match="TMPDIR"), short_folder(_room(wide)):
        pass


def test_the_folder_is_its_users_alone_and_gone_in_the_end(places: tuple[Path, Path]) -> None:
    with short_folder(200) as folder:
        found = folder.stat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert found.st_uid == os.getuid()
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
    assert not folder.exists()


def test_it_is_said_what_to_do_where_no_place_will_do(
    places: tuple[Path, Path],
) -> None:
    said = "Let TMPDIR name a folder whose path has 1 bytes"
    with pytest.raises(ConfigError, match=said), short_folder(1 + len("/") + len(_NAME)):
        pass


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(
    places: tuple[Path, Path],
) -> None:
    keep = [sys.executable, "-c", _KEEPER, str(places[1])]
    with subprocess.Popen(keep, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        with short_folder(200) as living:
            assert left.exists()
            killed.kill()
            killed.wait()
            with short_folder(200):
                assert not left.exists()
                assert living.exists()


_KEEPER = """
import sys, time
from pathlib import Path
from tuner.search.ray import short_folder
short_folder._places = lambda: [Path(sys.argv[1])]
with short_folder.short_folder(200) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_is_not_ours_is_left_alone(places: tuple[Path, Path], tmp_path: Path) -> None:
    place, elsewhere = places[1], tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (place / "tuner-ray-notes").mkdir()  # a user's own
    (place / _NAME).symlink_to(elsewhere)  # a stranger's trap
    strangers = place / "tuner-ray-stranger"
    strangers.mkdir()
    if os.getuid() == 0:
        os.chown(strangers, 65534, 65534)
    with short_folder(_room(place)):
        pass
    assert (elsewhere / "file").exists()
    assert (place / "tuner-ray-notes").exists()
    assert strangers.exists() or os.getuid() != 0
