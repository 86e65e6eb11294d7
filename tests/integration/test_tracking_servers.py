"""Studies shown in a real MLflow: in a file, on a server, and on a server that dies."""

import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.clone import ROOT
from tests.support.made_up_study import made_up_study
from tests.support.mlflow_server import MlflowServer
from tuner.cli.search import _Trackers
from tuner.errors import ClusterError, ConfigError
from tuner.search.trackers import TRACKERS, TrackingPlace
from tuner.tracking import SyncReport, Tracker, default_uri, fetch_bundle, located_uri, sync
from tuner.tracking.projection import Projection
from tuner.trial.records import StudyResultRecord, TrialState

mlflow = pytest.importorskip("mlflow")

EXPERIMENT = "country_capital"


@pytest.fixture
def server(tmp_path):
    server = MlflowServer(tmp_path / "server")
    yield server
    server.kill()


def runs_of(uri: str, result: StudyResultRecord):
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs(
        [experiment.experiment_id],
        f"tags.`tuner.study` = '{result.summary.uid}'",
        max_results=1000,
    )
    return client, {run.data.tags["tuner.uid"]: run for run in found}, len(found)


def assert_shown_exactly(uri: str, result: StudyResultRecord, report: SyncReport) -> None:
    """Every trial has one run, in the right state, with its values and artifacts."""
    assert report.complete, report.message
    client, runs, count = runs_of(uri, result)
    uid = result.summary.uid
    parent = runs[f"{uid}/study"]
    assert count == len(runs) == len(result.entries) + 1
    assert parent.info.status == "FINISHED"
    assert parent.info.run_id == report.study_run
    won = {(winner.trial, winner.epsilon) for winner in result.winners}
    for entry in result.entries:
        run = runs[f"{uid}/{entry.number}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.run_id == report.trial_runs[entry.number]
        assert run.info.start_time == round(entry.started.timestamp() * 1000)
        assert run.info.end_time == round(entry.finished.timestamp() * 1000)
        if entry.state is TrialState.FAILED:
            assert run.info.status == "FAILED"
            assert "not finite" in run.data.tags["failure"]
            continue
        assert run.info.status == "FINISHED"
        assert float(run.data.params["learning_rate"]) == entry.parameters["learning_rate"]
        history = client.get_metric_history(run.info.run_id, "success")
        assert Counter((m.step, m.value) for m in history) == Counter(
            (epoch.epoch, epoch.success) for epoch in entry.record.epochs
        )
        for answer in entry.record.answers:
            name = f"{answer.rule}.eps_{answer.epsilon:.0e}/gain"
            assert run.data.metrics[name] == answer.gain
        for epsilon, _ in entry.bundles:
            if (entry.number, epsilon) in won:
                files = client.list_artifacts(run.info.run_id, f"bundles/eps_{epsilon:.0e}")
                assert {Path(f.path).name for f in files} == {"delta.json", "delta.safetensors"}


def test_a_study_is_shown_once_however_often_it_is_sent(tmp_path):
    result = made_up_study(tmp_path, trials=12)
    page = tmp_path / "report.html"
    page.write_text("<p>the report</p>")
    uri = default_uri(tmp_path)
    for _ in range(2):  # the second time is a continued study
        tracker = Tracker(None, EXPERIMENT, result.summary, tmp_path)
        tracker.start()
        for entry in result.entries:
            running = {"state": TrialState.RUNNING, "record": None, "finished": None}
            tracker.trial_changed(entry.model_copy(update=running))
            tracker.trial_changed(entry)
        tracker.study_finished(result, page, (page,))
        report = tracker.close(60)
        assert_shown_exactly(uri, result, report)
    before = runs_of(uri, result)[1]
    report = sync(None, EXPERIMENT, result, tmp_path, report_path=page, figures=(page,))
    assert_shown_exactly(uri, result, report)
    after = runs_of(uri, result)[1]
    assert {u: r.data.tags for u, r in before.items()} == {u: r.data.tags for u, r in after.items()}
    client = mlflow.MlflowClient(uri)
    assert [f.path for f in client.list_artifacts(report.study_run, "report")] == [
        "report/report.html"
    ]
    assert [f.path for f in client.list_artifacts(report.study_run, "figures")] == [
        "figures/report.html"
    ]
    assert (tmp_path / "mlartifacts").is_dir()


def test_the_tracker_of_the_registry_says_itself_where_the_study_is_shown(
    tmp_path: Path,
) -> None:
    result = made_up_study(tmp_path, trials=3).model_copy(update={"winners": ()})
    trackers = _Trackers(["mlflow"], TrackingPlace(tmp_path))
    (make,) = trackers.makers
    tracker = make(result.summary)
    for entry in result.entries:
        tracker.trial_changed(entry)
    tracker.study_finished(result)
    tracker.close()
    command, page = trackers.where()
    assert str(tmp_path / "mlflow.db") in command
    assert result.summary.uid in page
    assert trackers.missing() == []
    assert TRACKERS.find("mlflow").sync(result, TrackingPlace(tmp_path)) is None


def test_an_upload_that_takes_long_is_waited_for(tmp_path, monkeypatch):
    write = Projection._write

    def slow(*arguments):
        time.sleep(1.5)
        write(*arguments)

    monkeypatch.setattr(Projection, "_write", slow)
    result = made_up_study(tmp_path, trials=3)
    tracker = Tracker(None, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    for entry in result.entries:
        tracker.trial_changed(entry)
    tracker.study_finished(result)
    assert tracker.close(0.5).complete


def test_a_trial_that_is_refused_for_ever_does_not_hold_up_the_end(tmp_path, monkeypatch):
    write = Projection._write

    def choosy(projection, runs, content, parent):
        if content.uid.endswith("/1"):
            raise ClusterError("MLflow does not take it")
        write(projection, runs, content, parent)

    monkeypatch.setattr(Projection, "_write", choosy)
    result = made_up_study(tmp_path, trials=3)
    tracker = Tracker(None, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    for entry in result.entries:
        tracker.trial_changed(entry)
    tracker.study_finished(result)
    report = tracker.close(3)
    assert report.unsent == (1,)
    assert "MLflow does not take it" in report.message


def test_an_interrupted_study_leaves_nothing_running(tmp_path):
    result = made_up_study(tmp_path, trials=3, finished=False)
    tracker = Tracker(None, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    for entry in result.entries:
        running = {"state": TrialState.RUNNING, "record": None, "finished": None}
        tracker.trial_changed(entry.model_copy(update=running))
    tracker.trial_changed(result.entries[0])
    assert tracker.close(60).complete
    statuses = Counter(r.info.status for r in runs_of(default_uri(tmp_path), result)[1].values())
    assert statuses == {"KILLED": 3, "FINISHED": 1}


def test_a_server_that_dies_in_mid_search_has_every_run_once_it_is_back(tmp_path, server):
    result = made_up_study(tmp_path, trials=14)
    server.start()
    tracker = Tracker(server.uri, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    for entry in result.entries[:5]:
        tracker.trial_changed(entry)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if mlflow.MlflowClient(server.uri).get_experiment_by_name(EXPERIMENT):
            break
        time.sleep(0.05)
    server.kill()  # in the middle of sending the first trials, or just after

    started = time.monotonic()
    for entry in result.entries[5:10]:
        tracker.trial_changed(entry)
    # The search does not notice: one answer that is waited for takes longer.
    assert time.monotonic() - started < 5
    time.sleep(3)
    server.start()
    for entry in result.entries[10:]:
        tracker.trial_changed(entry)
    tracker.study_finished(result)
    assert_shown_exactly(server.uri, result, tracker.close(90))


def test_what_a_dead_server_missed_is_replayed_from_the_records(tmp_path, server):
    result = made_up_study(tmp_path, trials=8)
    tracker = Tracker(server.uri, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    for entry in result.entries:
        tracker.trial_changed(entry)
    tracker.study_finished(result)
    began = time.monotonic()
    report = tracker.close(4)
    assert time.monotonic() - began < 60
    assert report.unsent == tuple(range(8))
    assert report.study_unsent
    assert not report.complete
    assert "`tuner status capitals --sync`" in report.message
    with pytest.raises(ClusterError, match="does not answer"):
        sync(server.uri, EXPERIMENT, result, tmp_path)

    # The study's own record on disk is all that the replay needs.
    from_disk = StudyResultRecord.model_validate_json(result.model_dump_json())
    server.start()
    assert_shown_exactly(server.uri, result, sync(server.uri, EXPERIMENT, from_disk, tmp_path))
    assert_shown_exactly(server.uri, result, sync(server.uri, EXPERIMENT, from_disk, tmp_path))


def test_a_study_that_is_being_sent_is_not_sent_by_another(tmp_path):
    result = made_up_study(tmp_path, trials=3)
    tracker = Tracker(None, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    tracker.trial_changed(result.entries[0])
    lock = result.summary.folder / "tracking.lock"
    deadline = time.monotonic() + 30
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    with pytest.raises(ConfigError, match="by another process"):
        sync(None, EXPERIMENT, result, tmp_path)
    tracker.close(60)
    assert sync(None, EXPERIMENT, result, tmp_path).complete


def test_runs_that_were_deleted_stay_deleted_and_are_named(tmp_path):
    result = made_up_study(tmp_path, trials=4)
    report = sync(None, EXPERIMENT, result, tmp_path)
    client = mlflow.MlflowClient(default_uri(tmp_path))
    client.delete_run(report.trial_runs[2])
    report = sync(None, EXPERIMENT, result, tmp_path)
    assert not report.complete
    assert f"mlflow runs restore --run-id {client_run(client, result, 2)}" in report.message
    client.restore_run(client_run(client, result, 2))
    assert sync(None, EXPERIMENT, result, tmp_path).complete


def client_run(client, result: StudyResultRecord, number: int) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs(
        [experiment.experiment_id],
        f"tags.`tuner.uid` = '{result.summary.uid}/{number}'",
        run_view_type=mlflow.entities.ViewType.ALL,
    )
    assert len(found) == 1
    return found[0].info.run_id


def test_a_deleted_experiment_is_named_and_ends_no_search(tmp_path):
    result = made_up_study(tmp_path, trials=3)
    report = sync(None, EXPERIMENT, result, tmp_path)
    mlflow.MlflowClient(default_uri(tmp_path)).delete_experiment(report.experiment_id)
    with pytest.raises(ConfigError, match="mlflow experiments restore --experiment-id"):
        sync(None, EXPERIMENT, result, tmp_path)
    tracker = Tracker(None, EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    for entry in result.entries:
        tracker.trial_changed(entry)
    report = tracker.close(30)
    assert report.unsent == (0, 1, 2)
    assert "was deleted" in report.message


def test_a_bundle_that_is_gone_is_named_and_the_rest_is_shown(tmp_path):
    result = made_up_study(tmp_path, trials=6)
    number = result.winners[0].trial
    for _, folder in result.entries[number].bundles:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    report = sync(None, EXPERIMENT, result, tmp_path)
    assert len(report.problems) == 1
    assert "no longer there" in report.message
    assert len(report.trial_runs) == 6


def test_nothing_is_printed_and_the_user_s_settings_are_kept(tmp_path):
    code = f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tests.support.made_up_study import made_up_study
        from tuner.tracking import Tracker
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "77"

        def settings():
            return {{k: v for k, v in os.environ.items() if not k.startswith("_MLFLOW")}}

        before = settings()
        folder = Path({str(tmp_path)!r})
        for uri in (None, "http://127.0.0.1:9"):
            result = made_up_study(folder, trials=3)
            tracker = Tracker(uri, "quiet", result.summary, folder)
            tracker.start()
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
            for entry in result.entries:
                tracker.trial_changed(entry)
            tracker.study_finished(result)
            report = tracker.close(30 if uri is None else 3)
            assert report.complete is (uri is None), report.message
        assert settings() == before
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_a_password_reaches_no_message(tmp_path):
    result = made_up_study(tmp_path, trials=2)
    tracker = Tracker("http://ada:s3cret@127.0.0.1:9", EXPERIMENT, result.summary, tmp_path)
    tracker.start()
    tracker.trial_changed(result.entries[0])
    report = tracker.close(3)
    assert not report.complete
    assert "s3cret" not in report.model_dump_json() + report.message


def test_runs_and_artifacts_land_in_a_folder_of_any_name_and_are_read_again(tmp_path, monkeypatch):
    studies = tmp_path / "q?mark 50%25" / "a#b ü"
    studies.mkdir(parents=True)
    result = made_up_study(studies, trials=3)
    report = sync(None, EXPERIMENT, result, studies)
    assert_shown_exactly(default_uri(studies), result, report)
    assert (studies / "mlflow.db").is_file()
    assert list((studies / "mlartifacts").rglob("delta.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["q?mark 50%25"]
    monkeypatch.chdir(studies)
    assert located_uri("sqlite:///mlflow.db", tmp_path) == default_uri(studies)
    name, epsilon = result.summary.name, result.winners[0].epsilon
    fetch_bundle("sqlite:///mlflow.db", EXPERIMENT, name, epsilon, Path("mit Leerzeichen"))
    assert (studies / "mit Leerzeichen" / "delta.json").is_file()
