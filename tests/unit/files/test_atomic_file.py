import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.small_disk import python_on_small_disk
from tuner.errors import DiskError
from tuner.files.atomic_file import (
    append_text,
    is_abandoned_draft,
    remove_abandoned_drafts,
    whole_folder,
    write_tensors,
    write_text,
)

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", refuse)


def _folder(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    try:
        # One of our own: never the system's, which a mistake would take from everybody.
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no device can be made here")


@pytest.mark.parametrize("make", [os.mkfifo, _device, _folder])
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_written(
    make: Callable[[Path], object], linked: bool, tmp_path: Path
) -> None:
    special = tmp_path / "special"
    make(special)
    before = special.stat()
    path = special
    if linked:
        path = tmp_path / "link.json"
        path.symlink_to(special)
    for write in (write_text, append_text):
        with pytest.raises(DiskError, match="not a file"):
            write(path, "{}")
    after = special.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert path.is_symlink() is linked


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")
    write_text(path, "näher")
    assert path.read_text(encoding="utf-8") == "näher"
    assert os.listdir(path.parent) == ["file.json"]


def test_a_full_disk_leaves_what_was_there_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_text(path, "old")
    fill_disk(monkeypatch)
    with pytest.raises(DiskError, match=r"file\.json cannot be written: the disk is full.*room"):
        write_text(path, "new")
    with pytest.raises(DiskError, match="the disk is full"):
        append_text(path, "more")
    with pytest.raises(DiskError, match="the disk is full"), whole_folder(tmp_path / "f") as draft:
        (draft / "part").write_text("x")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_all_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.json", "{}")
        write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)})
        with whole_folder(tmp_path / "folder") as draft:
            write_tensors(draft / "a.safetensors", {"a": torch.arange(3)})
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert len(files) == 3
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_tensors_that_do_not_fit_on_the_disk_leave_none_of_them(tmp_path: Path) -> None:
    script = """
import os, sys, torch
from pathlib import Path
from tuner.files.atomic_file import append_text, write_tensors, write_text
from tuner.errors import DiskError
place = Path(sys.argv[1])
write_text(place / "log", "x" * 40_000)
for act in (
    lambda: write_tensors(place / "t.safetensors", {"a": torch.zeros(20_000)}),
    lambda: write_text(place / "log", "y" * 40_000),
    lambda: append_text(place / "log", "y" * 40_000),
):
    try:
        act()
    except DiskError as error:
        print("full" in str(error))
print(os.listdir(place), (place / "log").read_text() == "x" * 40_000)
"""
    found = python_on_small_disk(tmp_path / "disk", "64k", ["-c", script, str(tmp_path / "disk")])
    assert found.stdout.splitlines() == ["True", "True", "True", "['log'] True"], found.stderr


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "store" / "real.json")
    write_text(link, "{}")
    assert link.is_symlink()
    assert (tmp_path / "store" / "real.json").read_text() == "{}"


def test_a_folder_appears_whole_and_never_over_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with whole_folder(target) as draft:
        (draft / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    with pytest.raises(DiskError, match="not empty"), whole_folder(target) as draft:
        (draft / "b").write_text("2")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(target) == ["a"]


def test_only_drafts_of_ended_processes_are_removed(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tuner.files.atomic_file import whole_folder
with whole_folder(Path(sys.argv[1]) / "folder") as draft:
    (draft / "a").write_text("1")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert is_abandoned_draft(left)
    own = left.name.split("-")
    alive = tmp_path / "-".join([*own[:2], str(os.getpid()), own[3]])
    elsewhere = tmp_path / "-".join([own[0], "0" * 8, *own[2:]])
    old_elsewhere = tmp_path / "-".join([own[0], "1" * 8, *own[2:]])
    mine = tmp_path / ".tuner-notes.draft"
    for folder in (alive, elsewhere, old_elsewhere, mine):
        folder.mkdir()
    os.utime(old_elsewhere, (0, 0))
    remove_abandoned_drafts(tmp_path)
    assert set(tmp_path.iterdir()) == {alive, elsewhere, mine}


def test_a_cache_on_a_full_disk_costs_only_time(tmp_path: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from tuner.files.cache import Cache
cache = Cache(Path(sys.argv[1]))
cache.save("losses", {"a": 1}, {"a": torch.zeros(20_000)})
print(cache.load("losses", {"a": 1}), list(Path(sys.argv[1]).rglob("*.*")))
"""
    found = python_on_small_disk(tmp_path / "disk", "64k", ["-c", script, str(tmp_path / "disk")])
    assert found.stdout == "None []\n", found.stderr
