from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from tuner.errors import ConfigError
from tuner.files.yaml_file import load_yaml, parse_yaml, read_yaml

_LETTERS = "abcdefghij"
# Read without a bound it keeps a processor busy for minutes.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(_LETTERS)
)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = ""
    rate: float = 0.0
    storage: SecretStr | None = None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: &a [*a]", ":1: the alias"),
        ("y: 1\n? [a]\n: 1", ":2: a key must be text"),
        ("y: 1\nx: !!int abc", ":2: 'abc' is not of the type int"),
        ("x: !!bool maybe", "type bool"),
        ("x: !!timestamp now", "the tag"),
        ("x: " + "9" * 5000, "a number of 5,000 characters"),
        ("[" * 5000, "within one another"),
        ("- " * 5000, "within one another"),
        ('x: "\\UFFFFFFFF"', "names no character"),
        ('x: "\\ud800"', "surrogate"),
        ("y: 1\nx: \0", ":2: not valid YAML: the character U[+]0000"),
        ("x: 1\nx: 2", ":2: the key 'x' stands twice"),
        ("--- 1\n--- 2", "another document"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("x: y" * 100_000, "at most 200,000 bytes"),
        (BOMB, ":5: stands for more than 20,000 values"),
    ],
)
def test_yaml_that_is_not_plain_data_is_refused_in_words_at_once(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"file\.yaml.*{said}") as error:
        read_yaml(path)
    assert len(str(error.value)) < 500 + len(str(path))


def test_plain_data_is_read_and_a_date_is_text() -> None:
    assert parse_yaml("x: 2023-99-99") == {"x": "2023-99-99"}
    assert parse_yaml("[1e-4, 1.0e-4, 3, 12e45678, =]") == [1e-4, 1e-4, 3, "12e45678", "="]
    assert parse_yaml("a: &a {x: 1}\nb:\n  <<: *a\n  y: [*a, *a]") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": [{"x": 1}, {"x": 1}]},
    }
    assert parse_yaml("") is None


def test_a_misspelt_key_does_not_show_its_password(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("storge: postgresql://u:hush@db/x\nname: [postgresql:/u:hush@db/x]\nrate: x\n")
    with pytest.raises(ConfigError) as error:
        load_yaml(path, Settings)
    said = str(error.value)
    assert "hush" not in said
    assert "file.yaml:1: storge: Extra" in said
    assert "db/x" in said
    assert "rate: Input should be a valid number" in said
