import os
import signal

import pytest
import typer

from tuner.cli.stopping import INTERRUPTED, stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_verb_in_words_and_handlers_come_back(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.cli.stopping._leave_terminal", lambda: None)
    # The tests themselves may run under nohup.
    ours = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(typer.Exit) as ended, stoppable():
            os.kill(os.getpid(), number)
        assert ended.value.exit_code == INTERRUPTED == 130
        assert capsys.readouterr().err == "Stopped.\n"
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, ours)


def test_a_closed_terminal_ends_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
