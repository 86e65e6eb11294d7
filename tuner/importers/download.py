"""Downloads published files: whole and checked, or not at all."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from tuner.errors import ConfigError, FetchError
from tuner.files.atomic_file import cannot_write, write_text
from tuner.files.file_lock import file_lock_if_any
from tuner.importers.catalogue import PublishedFile

Note = Callable[[int, int | None], None]
"""Told how many bytes are here, and of how many if the server says so."""

_ATTEMPTS = 4
_TIMEOUT_S = 30.0
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
# Bytes are counted and checked as they lie on the server.
_AS_IT_LIES = {"Accept-Encoding": "identity"}


@final
@dataclass(frozen=True)
class Fetched:
    """A published file that lies on this machine.

    Attributes:
        was_there: Whether it lay there before and was only checked.
        known: Whether the checksum was known before: stated by the authors or by the user, or
            written down at an earlier download. If not, it says nothing about this download and
            guards the next.
    """

    path: Path
    bytes: int
    sha256: str
    was_there: bool
    known: bool


class _Partial(BaseModel):
    """What a download that was cut off came from; only the same content may be added to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    validator: str


def published_size(file: PublishedFile, mirror: str | None = None) -> int | None:
    """Return the file's size in bytes, or None where the server does not say.

    Raises:
        FetchError: the server cannot be reached or does not have the file.
        ConfigError: the mirror's address is none.
    """
    url = file.url(mirror)
    try:
        answer = httpx2.head(url, follow_redirects=True, headers=_AS_IT_LIES, timeout=_TIMEOUT_S)
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise _unreachable(url, error) from None
    if answer.status_code in (405, 501):  # This server answers no HEAD.
        return None
    _refuse_status(url, answer.status_code)
    return _length(answer)


def fetch(
    file: PublishedFile,
    folder: Path,
    *,
    mirror: str | None = None,
    sha256: str | None = None,
    note: Note | None = None,
    pause_s: float = 1.0,
) -> Fetched:
    """Download a file into a folder, or check the one that lies there.

    It appears under its name only when it is whole and its checksum is right. The authors of the
    present files state no checksums: without one from the user the first download's is written
    beside the file, as `sha256sum` writes it, and guards every later one. A connection that is
    cut is taken up again where it ended, if the server can tell that nothing has changed.

    Raises:
        FetchError: the file cannot be had or written, or is not the one that the checksum is of.
        ConfigError: the checksum or the mirror's address is none.
    """
    if sha256 is not None and not _CHECKSUM.fullmatch(sha256.lower()):
        raise ConfigError(f"A sha256 has 64 hexadecimal digits, but got {sha256!r}.")
    path = folder / file.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock_if_any(Path(f"{path}.lock")):
            record = Path(f"{path}.sha256")
            wanted = sha256.lower() if sha256 else file.sha256 or _recorded(record)
            was_there = path.exists()
            if not was_there:
                partial = Path(f"{path}.part")
                _download(file.url(mirror), partial, note or (lambda here, total: None), pause_s)
            checksum = _checksum(path if was_there else partial)
            if wanted is not None and checksum != wanted:
                _refuse_checksum(path, checksum, wanted, was_there)
            write_text(record, f"{checksum}  {path.name}\n")
            if not was_there:
                partial.replace(path)
            return Fetched(path, path.stat().st_size, checksum, was_there, wanted is not None)
    except OSError as error:
        raise FetchError(str(cannot_write(path, error))) from None


def _download(url: str, partial: Path, note: Note, pause_s: float) -> None:
    """Download until the file is whole, going on where the connection was cut."""
    passing = retry_if_exception_type((httpx2.RequestError, _ServerTrouble))
    tries = Retrying(
        retry=passing & retry_if_not_exception_type(httpx2.UnsupportedProtocol),
        wait=wait_exponential(pause_s),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    try:
        tries(_continue, url, partial, note)
    except (httpx2.RequestError, httpx2.InvalidURL, _ServerTrouble) as error:
        raise _unreachable(url, error) from None


class _ServerTrouble(Exception):
    """The server has a trouble that may pass."""


def _continue(url: str, partial: Path, note: Note) -> None:
    origin = Path(f"{partial}.json")
    validator = _validator_of(origin, url)
    have = partial.stat().st_size if validator and partial.exists() else 0
    headers = dict(_AS_IT_LIES)
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with httpx2.stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
    ) as answer:
        if answer.status_code == 416:  # What is here is not the beginning of what is there.
            origin.unlink(missing_ok=True)
            raise _ServerTrouble("the file has changed since the download began")
        if answer.status_code >= 500:
            raise _ServerTrouble(f"the server answered {answer.status_code}")
        _refuse_status(url, answer.status_code)
        goes_on = answer.status_code == 206
        start = answer.headers.get("Content-Range", "")
        if goes_on and not start.startswith(f"bytes {have}-"):
            origin.unlink(missing_ok=True)
            raise _ServerTrouble(f"the server went on elsewhere than at byte {have}: {start!r}")
        if not goes_on:
            have = 0
            _remember(origin, url, answer)
        length = _length(answer)
        total = None if length is None else have + length
        with partial.open("ab" if goes_on else "wb") as out:
            for chunk in answer.iter_raw():
                out.write(chunk)
                have += len(chunk)
                note(have, total)
            out.flush()
            os.fsync(out.fileno())
    origin.unlink(missing_ok=True)


def _remember(origin: Path, url: str, answer: httpx2.Response) -> None:
    """Note what a cut download could be continued by; a weak tag does not promise equal bytes."""
    tag = answer.headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
    if validator and answer.headers.get("Accept-Ranges") != "none":
        write_text(origin, _Partial(url=url, validator=validator).model_dump_json())
    else:
        origin.unlink(missing_ok=True)


def _validator_of(origin: Path, url: str) -> str | None:
    try:
        before = _Partial.model_validate_json(origin.read_text())
    except (FileNotFoundError, ValidationError, UnicodeDecodeError):
        return None
    return before.validator if before.url == url else None


def _length(answer: httpx2.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(record: Path) -> str | None:
    """Return the checksum that an earlier download wrote down.

    Raises:
        FetchError: the file is there and holds none.
    """
    if not record.exists():
        return None
    words = record.read_text(errors="replace").split()
    if not words or not _CHECKSUM.fullmatch(words[0]):
        raise FetchError(f"{record}: must begin with a sha256. Delete it to write a new one.")
    return words[0]


def _refuse_checksum(path: Path, checksum: str, wanted: str, was_there: bool) -> None:
    said = f"its sha256 should be {wanted}, but is {checksum}."
    if was_there:
        raise FetchError(f"{path} is not the file it should be: {said} Delete it to fetch it anew.")
    Path(f"{path}.part").unlink()
    raise FetchError(
        f"The download of {path.name} was thrown away: {said} If the publisher has changed the "
        f"file and you trust the change, delete {path}.sha256 or give the new --sha256."
    )


def _refuse_status(url: str, status: int) -> None:
    if not 200 <= status < 300:
        raise FetchError(f"{url}: the server answered {status}. Is there a --mirror that has it?")


def _unreachable(url: str, error: Exception) -> ConfigError | FetchError:
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return ConfigError(f"{url} is not an address: {error}")
    return FetchError(
        f"{url}: {str(error) or type(error).__name__}. Run the command again to go on where it "
        "ended, or give a --mirror."
    )
