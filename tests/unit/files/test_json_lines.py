import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.support.small_disk import python_on_small_disk
from tuner.errors import ConfigError
from tuner.files.json_lines import append_line, cut_half_line, read_line, whole_lines


class Point(BaseModel):
    x: int


def test_a_line_cut_short_is_left_out_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    assert whole_lines(path) == ()
    append_line(path, Point(x=1))
    append_line(path, Point(x=2))
    for half in (b"{", b'{"x":\xc3', b'{"x":3}'):
        with path.open("ab") as file:
            file.write(half)
        assert whole_lines(path) == ('{"x":1}', '{"x":2}')
        cut_half_line(path)
        assert path.read_bytes() == b'{"x":1}\n{"x":2}\n'


def test_somebody_s_text_at_the_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"x":1}\nnot ours')
    with pytest.raises(ConfigError, match="not the beginning of a record"):
        cut_half_line(path)
    assert path.read_text() == '{"x":1}\nnot ours'


def test_a_line_that_is_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(ConfigError, match=r"log\.jsonl:7: x: .* Do this\.$"):
        read_line(path, 7, '{"x": "a"}', Point, "Do this.")
    path.write_bytes(b"{}\n\xff\n")
    with pytest.raises(ConfigError, match=r"log\.jsonl:2: is not UTF-8"):
        whole_lines(path)


def test_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="named pipe"):
        whole_lines(tmp_path / "pipe")


def test_taking_up_a_log_on_a_full_disk_loses_no_line_and_goes_on_once_there_is_room(
    tmp_path: Path,
) -> None:
    script = """
import sys
from pathlib import Path
from pydantic import BaseModel
from tuner.errors import DiskError
from tuner.files.json_lines import append_line, cut_half_line, whole_lines

class Point(BaseModel):
    x: int
    text: str

place = Path(sys.argv[1])
log, filler = place / "log.jsonl", place / "filler"
written = 0
filler.write_bytes(bytes(40_000))
while True:
    try:
        append_line(log, Point(x=written, text="a" * 700))
    except DiskError as error:
        print("full" in str(error))
        break
    written += 1
log.open("ab").write(b'{"x"')
cut_half_line(log)
print(len(whole_lines(log)) == written > 20)
filler.unlink()
append_line(log, Point(x=written, text="a" * 700))
print([int(line[5:].split(",")[0]) for line in whole_lines(log)] == list(range(written + 1)))
"""
    found = python_on_small_disk(tmp_path / "disk", "64k", ["-c", script, str(tmp_path / "disk")])
    assert found.stdout.splitlines() == ["True", "True", "True"], found.stderr
