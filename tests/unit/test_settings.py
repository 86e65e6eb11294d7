"""What the environment says is read in one place, and no secret of it is shown."""

import ast
import json
from pathlib import Path

import pytest

from tests.support.clone import ROOT
from tests.support.command_line import Run
from tuner.files.cache import cache_folder
from tuner.settings import Settings, read_environment, variable


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)


def test_each_variable_is_read_and_one_that_is_empty_is_not_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = read_environment()
    assert (bare.cache, bare.storage, bare.cluster) == (None, None, None)
    assert (bare.studies, bare.debug) == ("tuner-studies", False)
    for name in ("TUNER_CACHE", "TUNER_CLUSTER", "TUNER_STORAGE", "TUNER_DEBUG", "TUNER_STUDIES"):
        monkeypatch.setenv(name, "")
    assert read_environment() == bare
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNER_CLUSTER", "local")
    monkeypatch.setenv("TUNER_DEBUG", "1")
    given = read_environment()
    assert (given.cluster, given.debug) == ("local", True)
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("TUNER_DEBUG", "0")
    assert not read_environment().debug


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hush@host:5432/db", "postgresql://…@host:5432/db"),
        ("postgresql+psycopg://me:hu/sh@host/db", "postgresql+psycopg://…@host/db"),
        ("postgresql://me:hu@sh@host/db", "postgresql://…@host/db"),
        ("postgresql://host/db?password=hush", "postgresql://…"),
        ("postgresql://me@host/db?password=hush@x", "postgresql://…"),
        ("postgresql://me:hush#@host/db", "postgresql://…"),
        ("postgresql://me:hush", "postgresql://…"),
        ("me:hush", "…"),
    ],
)
def test_no_password_of_the_storage_is_shown(
    url: str, shown: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_STORAGE", url)
    monkeypatch.setenv("COLUMNS", "200")
    storage = read_environment().storage
    assert storage is not None
    assert storage.get_secret_value() == url
    code, out, err = run("doctor", "--json")
    assert code == 0
    assert json.loads(out)["environment"]["TUNER_STORAGE"] == shown
    table = run("doctor")[1]
    assert f" {shown} " in table
    for said in (out, err, table):
        assert "hush" not in said


def test_no_other_module_reads_a_variable_of_ours() -> None:
    reads = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "tuner").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call | ast.Subscript)
        and ("environ" in ast.unparse(node) or "getenv" in ast.unparse(node))
        and "TUNER_" in ast.unparse(node)
    ]
    assert reads == []
