"""General text of users: which files are read, and as what."""

import os
from pathlib import Path

import pytest

from tuner.editing.corpus import FileDocuments, TextPart
from tuner.errors import TaskError


def _documents(path: Path) -> set[str]:
    return {text for part in TextPart for text in FileDocuments(path).documents(part)}


@pytest.mark.parametrize("suffix", [".jsonl", ".JSONL", ".ndjson", ".json"])
def test_json_lines_are_read_alike_whatever_the_name_ends_in(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two", "id": 3}\n')
    assert _documents(path) == {"one", "two"}


def test_a_byte_order_mark_is_not_a_part_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert _documents(path) == {"one", "two"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": null}', "`text` must be a string, but is None"),
        ('{"text": ["a", "b"]}', "must be a string"),
        ('{"text": 3}', "must be a string"),
        ('{"txt": "a"}', "an object with a `text`"),
        ('["a"]', "an object with a `text`"),
        ("null", "an object with a `text`"),
        (r'{"text": "\ud800"}', "surrogate"),
        ("[" * 50_000, "within one another"),
        ("9" * 5000, "5,000 digits"),
        ("no JSON", "not valid JSON"),
    ],
)
def test_what_is_not_a_document_is_refused_with_its_line(
    line: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(f'{{"text": "one"}}\n{line}\n')
    with pytest.raises(TaskError, match=rf"text\.jsonl:2: .*{said}"):
        _documents(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "text.txt")
    with pytest.raises(TaskError, match="a named pipe"):
        _documents(tmp_path / "text.txt")
