"""Names that verbs and options had before still work, and say the new name."""

from pathlib import Path

import pytest

from tests.support.command_line import Run

BUDGETS = {
    "search": ["search", "--task", "country_capital"],
    "edit": ["edit", "--task", "country_capital", "--editor", "rome", "--out", "bundle"],
}


@pytest.mark.parametrize("verb", BUDGETS)
@pytest.mark.parametrize("old", ["--epsilon", "-e"])
def test_budgets_under_their_old_name_are_budgets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, old: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = BUDGETS[verb]
    code, out, err = run(*asked, "--budget", "0.1", "--budget", "7")
    assert (code, out) == (2, "")
    assert "must hold for every budget, but got (0.1, 7.0)" in " ".join(err.split())
    code, out, told = run(*asked, "--budget", "0.1", old, "7")
    assert (code, out) == (2, "")
    assert told == f"`--epsilon` is called `--budget` here now.\n{err}"


@pytest.mark.parametrize("verb", BUDGETS)
def test_help_has_the_new_name_alone(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "--budget" in out
    assert "--epsilon" not in out
