"""What no reader foresees is told in words too, and with the right exit code."""

import sys
from typing import Any

import pytest
import typer

from tuner import cli
from tuner.errors import DiskError, TaskError


def _ending_with(error: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def verb() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TaskError("rows.jsonl:3: not valid"), 2, "Error: rows.jsonl:3: not valid"),
        (DiskError("full"), 1, "Error: full"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (RuntimeError("odd\nthing"), 1, "This is a fault of tuner, or of something"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), 1, "UnicodeEncodeError"),
    ],
)
def test_each_end_has_its_code_and_words(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", _ending_with(error))
    monkeypatch.setattr(sys, "argv", ["tuner"])
    monkeypatch.delenv("TUNER_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == code
    assert said in err
    assert "Traceback" not in err


def test_the_traceback_is_there_for_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", _ending_with(RuntimeError("odd")))
    monkeypatch.setattr(sys, "argv", ["tuner"])
    monkeypatch.setenv("TUNER_DEBUG", "1")
    with pytest.raises(RuntimeError, match="odd"):
        cli.main()


def test_a_terminal_that_lacks_a_letter_shows_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def verb() -> None:
            sys.stdout.write("ε = 1e-3, \udce9\n")

        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(cli, "app", app)
        monkeypatch.setattr(sys, "argv", ["tuner"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    assert (tmp_path / "out").read_text() == "\\u03b5 = 1e-3, \\udce9\n"
