"""The reader of long lists: every record, whatever the chunks; complaints name file and record."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from tuner.errors import TaskError
from tuner.importers import json_list
from tuner.importers.json_list import read_records


class Line(BaseModel):
    text: str
    inner: dict[str, list[int]] = {}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_every_record_comes_whatever_the_chunks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    lines = [Line(text=f'é "quoted" ]}} {n}', inner={"a": [n, 2]}) for n in range(20)]
    path = tmp_path / "list.json"
    for indent in (None, 2):
        path.write_text(json.dumps([line.model_dump() for line in lines], indent=indent) + "\n")
        assert list(read_records(path, Line)) == list(enumerate(lines, start=1))


def test_an_empty_list_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(" [ ]\n")
    assert list(read_records(path, Line)) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must hold one JSON list"),
        ('{"text": "a"}', "must hold one JSON list"),
        ('[{"text": "a"}, {"text": ', "record 2: not valid JSON.*download it again"),
        ('[{"text": "a"}, {"text": tru}]', "record 2: not valid JSON"),
        ('[{"text": "a"}, 3]', "record 2: an object must stand here"),
        ('[{"text": "a"}, ]', "record 2: an object must stand here"),
        ('[{"text": "a"} {"text": "b"}]', "after record 1 a comma"),
        ('[{"text": "a"}', "after record 1.*the file ends"),
        ('[{"text": "a"}, {"text": 3}]', "record 2: text: .*Got 3"),
        ('[{"texts": "a"}]', "record 1: text: Field required"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_record(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(TaskError, match=f"list.json: {said}"):
        list(read_records(path, Line))


def test_a_file_that_is_not_there_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read"):
        list(read_records(tmp_path / "none.json", Line))
    (tmp_path / "bytes.json").write_bytes(b"[\xff\xfe]")
    with pytest.raises(TaskError, match="cannot be read"):
        list(read_records(tmp_path / "bytes.json", Line))


@pytest.mark.parametrize("text", ["[" + '{"a":' + "[" * 100_000, '[{"a": ' + "9" * 5000 + "}]"])
def test_json_beyond_the_parser_is_told_by_record(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(TaskError, match=r"list\.json: record 1"):
        list(read_records(path, Line))
