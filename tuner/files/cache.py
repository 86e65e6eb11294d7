"""A content-addressed store of tensors on disk.

A key names everything that a value depends on. A wrong hit is the worst bug this service can
have, so keys are never shortened: forget nothing, and let an unnecessary miss cost time.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tuner.errors import DiskError
from tuner.files.atomic_file import write_tensors
from tuner.files.file_lock import file_lock_if_any
from tuner.files.home import temporary_home
from tuner.files.paths import absolute
from tuner.settings import read_environment

Key = Mapping[str, str | int | float | bool | None]


def cache_folder() -> Path:
    """Return the folder that `TUNER_CACHE` names, else the user's cache folder.

    A user without a home has a temporary one.
    """
    chosen = read_environment().cache
    if chosen:
        return absolute(chosen)
    try:
        folder = Path(platformdirs.user_cache_dir("tuner"))
    except RuntimeError:
        return temporary_home() / ".cache" / "tuner"
    return folder if folder.is_absolute() else temporary_home() / ".cache" / "tuner"


@final
@dataclass(frozen=True)
class Cache:
    """Tensors by key, in one folder; safe to share among processes and nodes."""

    folder: Path

    def load(self, kind: str, key: Key) -> dict[str, Tensor] | None:
        """Return what was saved under `key`, or None."""
        path = self._path(kind, key)
        try:
            return load_file(path)
        # A file cut short by a full disk is a miss, not a failure.
        except (OSError, SafetensorError):
            return None

    def save(self, kind: str, key: Key, tensors: dict[str, Tensor]) -> None:
        """Keep `tensors` under `key`. A folder that cannot be written costs only time."""
        path = self._path(kind, key)
        with suppress(DiskError):
            write_tensors(path, tensors, metadata={"key": _canonical(key)})

    @contextmanager
    def made_once(self, kind: str, key: Key) -> Iterator[None]:
        """Wait until nobody else makes what belongs under `key`; then others wait for us.

        Where the folder knows no locks nobody waits, and a value may be made twice.
        """
        with file_lock_if_any(self._path(kind, key).with_suffix(".lock")):
            yield

    def _path(self, kind: str, key: Key) -> Path:
        name = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return self.folder / kind / f"{name}.safetensors"


def _canonical(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)
