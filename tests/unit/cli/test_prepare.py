"""`tuner prepare` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from tuner.cli import app


def test_it_prepares_a_built_in_model_and_says_what_that_decides(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    amounts = [
        argument
        for part, most in {"search": 2048, "gradient": 2048, "confirmation": 2048}.items()
        for argument in ("--general-tokens", f"{part}={most}")
    ]
    command = ["prepare", "builtin:neox", "--space", "memit", *amounts]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    taken = json.loads(result.stdout)
    assert taken["gradient_tokens"] == 32 * 63
    assert taken["decides"] < taken["decides_without"]
    told = CliRunner().invoke(app, command)
    assert "Rule of thumb" in told.stdout


@pytest.mark.parametrize("given", ["search", "search=", "search=-3", "web=100", "search=1e3"])
def test_parts_that_are_none_are_refused_in_words(given: str) -> None:
    result = CliRunner().invoke(app, ["prepare", "builtin:neox", "--general-tokens", given])
    assert result.exit_code != 0
    assert not isinstance(result.exception, (ValueError, KeyError))
