from pathlib import Path

import pytest
from pydantic import BaseModel

from tuner.errors import ConfigError, TaskError
from tuner.files.json_file import JsonError, parse_json, read_json, read_json_if_any


class Row(BaseModel):
    text: str = ""
    number: float = 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "within one another"),
        ("[" * 150 + "]" * 150, "within one another"),
        ('{"a":' * 101 + "1" + "}" * 101, "within one another"),
        ("9" * 5000, "5,000 digits"),
        ("1e999", "beyond what floats hold"),
        ("NaN", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        (r'{"a": ["\ud800"]}', "surrogate"),
        (r'{"\uDFFF": 1}', "surrogate"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": 1', "delimiter"),
        ("", "expecting value"),
    ],
)
def test_json_that_would_break_a_later_reader_is_refused(text: str, said: str) -> None:
    with pytest.raises(JsonError, match=said):
        parse_json(text)


def test_whole_surrogate_pairs_and_usual_depths_are_json() -> None:
    assert parse_json(r'"\ud83d\ude00"') == "😀"
    assert parse_json(r'"\\ud800"') == r"\ud800"
    assert parse_json("[" * 100 + "]" * 100) is not None
    wide = "[" + ",".join(["[1]"] * 500) + "]"
    assert len(parse_json(wide)) == 500


def test_a_file_becomes_a_type_or_words_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    assert read_json_if_any(path, Row) is None
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "number": 2}')
    assert read_json(path, Row) == Row(text="a", number=2)
    path.write_text('{\n "text": "a",\n}')
    with pytest.raises(TaskError, match=r"row\.json:3: not valid JSON"):
        read_json(path, Row, TaskError)
    path.write_text('{"text": 3, "number": "' + "x" * 5000 + '"}')
    with pytest.raises(ConfigError, match=r"row\.json: text: .*Got 3\.; number: ") as error:
        read_json(path, Row)
    assert len(str(error.value)) < 500
