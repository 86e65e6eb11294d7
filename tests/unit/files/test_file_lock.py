import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch

from tuner.errors import DiskError
from tuner.files.cache import Cache
from tuner.files.file_lock import LockHeld, file_lock, file_lock_if_any, is_locked
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger, is_driven


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def disk_without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_one_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with file_lock(path):
        assert is_locked(path)
        with pytest.raises(LockHeld), file_lock(path, timeout_s=0):
            pass
    assert not is_locked(path)


@pytest.mark.usefixtures("disk_without_locks")
def test_a_disk_without_locks_is_told_in_words(tmp_path: Path) -> None:
    said = pytest.raises(DiskError, match=r"lends no locks .*another disk")
    with said, file_lock(tmp_path / "lock"):
        pass
    with file_lock_if_any(tmp_path / "lock"):
        assert not is_locked(tmp_path / "lock")


@pytest.mark.usefixtures("disk_without_locks")
def test_a_study_on_a_disk_without_locks_is_refused_in_words(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    with pytest.raises(DiskError, match="lends no locks"), Ledger.drive(folder, "study"):
        pass
    assert not is_driven(folder, "study", None)


@pytest.mark.usefixtures("disk_without_locks")
def test_a_cache_on_a_disk_without_locks_works_without_waiting(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.made_once("kind", {"a": 1}):
        cache.save("kind", {"a": 1}, {"t": torch.ones(2)})
    found = cache.load("kind", {"a": 1})
    assert found is not None
    assert found["t"].tolist() == [1, 1]
