import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tuner.errors import ConfigError, TaskError
from tuner.files.text_file import read_bytes, read_lines, read_text, read_text_if_any


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    # A socket's address is bounded to about a hundred bytes; its folder's name may be longer.
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_pipe, "a named pipe"),
        (_socket, "a socket"),
        (_device, "a device"),
        (Path.mkdir, "a folder"),
        (_circle, "circle"),
        (lambda path: None, "it does not exist"),
    ],
)
def test_what_is_not_a_regular_file_is_told_at_once(
    make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    make(path)
    for read in (read_text, read_bytes, lambda path, error: list(read_lines(path, error))):
        answer: list[str] = []

        def attempt(read: Callable[..., object] = read, answer: list[str] = answer) -> None:
            with pytest.raises(TaskError, match=r"file\.json: cannot be read") as error:
                read(path, TaskError)
            answer.append(str(error.value))

        reader = threading.Thread(target=attempt, daemon=True)
        reader.start()
        reader.join(timeout=60)
        assert answer, "the reader hangs, or said something else"
        assert said in answer[0]


@pytest.mark.parametrize(("name", "said"), [("a" * 5000, "too long"), ("a\0b", "name holds")])
def test_a_path_that_no_file_can_have_is_told_in_words(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        read_text(Path(name))
    assert len(str(error.value)) < 1000
    assert "\0" not in str(error.value)


def test_only_a_file_that_is_absent_is_none(tmp_path: Path) -> None:
    assert read_text_if_any(tmp_path / "none") is None
    (tmp_path / "file").write_text("text")
    assert read_text_if_any(tmp_path / "file" / "none") is None
    with pytest.raises(ConfigError, match="a folder"):
        read_text_if_any(tmp_path)


def test_a_byte_order_mark_is_dropped_by_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8three\n\n")
    assert read_text(path) == "one\ntwo\u2028three\n\n"
    assert list(read_lines(path)) == [(1, "one"), (2, "two\u2028three"), (3, "")]


def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"one\ntw\xe9o\n")
    for read in (read_text, lambda path: list(read_lines(path))):
        with pytest.raises(ConfigError, match="text:2: cannot be read: the byte 0xe9"):
            read(path)
    path.write_bytes("one".encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-16"):
        read_text(path)


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "text"
    with path.open("wb") as file:
        file.truncate(10**12)  # of holes
    with pytest.raises(ConfigError, match="at most 1,000 bytes"):
        read_text(path, most_bytes=1000)
