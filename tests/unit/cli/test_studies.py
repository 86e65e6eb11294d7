"""What the verbs about studies say of a result."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.command_line import Run
from tests.support.made_up_study import made_up_study
from tuner.cli.search import _Report, _Trackers
from tuner.cli.study_tables import of_budget, print_winners
from tuner.errors import ConfigError
from tuner.search import StudyConfig
from tuner.search.result import summary_of
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger
from tuner.search.trackers import TRACKERS, TrackingPlace
from tuner.trial.records import StudyResultRecord


def _said(record: StudyResultRecord, width: int) -> str:
    said = StringIO()
    print_winners(Console(width=width, file=said), record)
    return " ".join(said.getvalue().split())


@pytest.mark.parametrize("width", [80, 160])
def test_a_budget_within_which_nothing_was_gained_is_named(tmp_path: Path, width: int) -> None:
    record = made_up_study(tmp_path)
    shown = {"editor": "lora", "hyperparameters": {"learning_rate": 0.01}}
    winners = tuple(winner.model_copy(update=shown) for winner in record.winners)
    record = record.model_copy(update={"winners": winners})
    loosest, *others = record.summary.epsilons
    assert {winner.epsilon for winner in record.winners} == {loosest, *others}
    assert "the base model itself is the answer" not in _said(record, width)
    won = tuple(winner for winner in record.winners if winner.epsilon == loosest)
    few = record.model_copy(update={"winners": won})
    lost = ", ".join(f"{epsilon:g}" for epsilon in others)
    assert f"ε={lost}: no trial gained anything" in _said(few, width)
    # Who asks for one budget hears of that one.
    assert "no trial gained anything" not in _said(of_budget(few, loosest), width)


def test_a_finished_study_that_gained_nothing_is_not_to_be_run_again(
    tmp_path: Path, run: Run
) -> None:
    config = StudyConfig(name="vain", task="country_capital", trials=1)
    folder = StudyFolder(tmp_path / "vain")
    with Ledger.drive(folder, "vain") as ledger:
        ledger.set_definition(
            {**config.identity, "space definition": [{}], "task content": "", "uid": "1"}
            | {"trials": 1}
        )
        _, _, said = run("best", "vain", "--folder", str(tmp_path))
        assert "has selected nothing yet. Run `tuner search` again" in " ".join(said.split())
        record = StudyResultRecord(summary=summary_of(ledger, folder), winners=(), entries=())
    folder.result.write_text(record.model_dump_json())
    code, _, said = run("best", "vain", "--folder", str(tmp_path))
    assert code == 1
    assert "the base model itself is the answer" in " ".join(said.split())


def test_a_study_without_the_packages_of_a_report_ends_as_well_as_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.report.page.find_spec", lambda name: None)
    report = _Report()
    report.study_finished(made_up_study(tmp_path, trials=3))
    assert report.path is None
    assert "pip install 'tuner[report]'" in str(report.none_because)


def test_a_place_where_mlflow_keeps_no_runs_is_refused_before_the_search(tmp_path: Path) -> None:
    assert "mlflow" in TRACKERS.names()
    with pytest.raises(ConfigError, match="tracking URI must begin with one of"):
        _Trackers(["mlflow"], TrackingPlace(tmp_path, "ftp://runs"))
    assert _Trackers(["none"], TrackingPlace(tmp_path, "ftp://runs")).makers == []
