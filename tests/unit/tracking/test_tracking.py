"""What MLflow is told, decided without MLflow."""

import json
import re

import pytest

from tests.support.made_up_study import about_facts, made_up_study, under_constraint
from tuner.errors import ConfigError, MissingExtra
from tuner.tracking import Tracker, compare_url, default_uri, masked, study_url, ui_command
from tuner.tracking.content import (
    StudyView,
    legal_name,
    metric_name,
    study_content,
    trial_content,
)
from tuner.tracking.location import check_uri, is_server, sqlite_file
from tuner.tracking.view import shared_view
from tuner.trial.records import Rule, TrialState

LEGAL = re.compile(r"^[\w\-./: ]+$")


def view_of(result, **changes) -> StudyView:
    settings = {
        "summary": result.summary,
        "entries": {entry.number: entry for entry in result.entries},
        "winners": result.winners,
        "finished": bool(result.winners),
    }
    return StudyView(**(settings | changes))


def test_every_name_is_one_that_mlflow_takes(tmp_path):
    view = view_of(made_up_study(tmp_path))
    contents = [trial_content(view, number, view.ranks()) for number in view.entries]
    for content in (study_content(view), *contents):
        names = [*content.params, *content.tags, *(point.key for point in content.points)]
        assert all(LEGAL.match(name) and len(name) <= 250 for name in names)


def test_a_trial_shows_its_hyperparameters_epochs_and_every_answer(tmp_path):
    view = view_of(made_up_study(tmp_path))
    entry = view.entries[view.winners[0].trial]
    content = trial_content(view, entry.number, view.ranks())
    shown = {(point.key, point.step): point.value for point in content.points}

    assert content.params["editor"] == entry.record.editor
    assert float(content.params["learning_rate"]) == entry.parameters["learning_rate"]
    assert [shown["success", e.epoch] for e in entry.record.epochs] == [
        e.success for e in entry.record.epochs
    ]
    for answer in entry.record.answers:
        assert shown[metric_name("gain", answer.rule, answer.epsilon), 0] == answer.gain
    assert content.status == "FINISHED"
    assert content.tags["rank.eps_1e-03"] == "001"
    assert content.tags["winner"] == "eps_1e-03"
    assert content.artifacts == ((entry.bundles[0][1], "bundles/eps_1e-03"),)


def test_facts_bring_their_figures_and_other_tasks_none(tmp_path):
    plain = made_up_study(tmp_path)
    facts = about_facts(plain)
    number = plain.winners[0].trial
    keys = []
    for result in (plain, facts):
        view = view_of(result)
        shown = {p.key: p.value for p in trial_content(view, number, view.ranks()).points}
        keys.append(set(shown))
    answers = {(a.rule, a.epsilon) for a in facts.entries[number].record.answers}
    figures = ("efficacy", "generalisation", "specificity", "edit_score")
    assert keys[1] - keys[0] == {f"base_{name}" for name in figures} | {
        metric_name(name, *answer) for name in (*figures, "fluency") for answer in answers
    }
    name = metric_name("edit_score", facts.summary.rule, facts.summary.target_epsilon)
    assert shown[name] == 0.8125


def test_a_failed_trial_says_why(tmp_path):
    view = view_of(made_up_study(tmp_path))
    content = trial_content(view, 7, view.ranks())
    assert content.status == "FAILED"
    assert "not finite" in content.tags["failure"]
    assert not any(name.startswith("rank.") for name in content.tags)


@pytest.mark.parametrize(
    ("state", "live", "status"),
    [
        (TrialState.RUNNING, True, "RUNNING"),
        (TrialState.WAITING, True, "SCHEDULED"),
        (TrialState.RUNNING, False, "KILLED"),
    ],
)
def test_no_run_looks_alive_after_its_driver(tmp_path, state, live, status):
    result = made_up_study(tmp_path, finished=False)
    entry = result.entries[0].model_copy(update={"state": state, "record": None})
    view = view_of(result, entries={0: entry}, live=live)
    assert trial_content(view, 0, view.ranks()).status == status


def test_ranks_go_by_success_and_leave_out_who_breaks_the_budget(tmp_path):
    view = view_of(made_up_study(tmp_path))
    for epsilon, ranks in view.ranks().items():
        by_rank = sorted(ranks, key=ranks.get)
        successes = [view.entries[n].record.answer(epsilon).success for n in by_rank]
        assert successes == sorted(successes, reverse=True)
        assert all(view.entries[n].record.answer(epsilon).epoch is not None for n in ranks)


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    result = made_up_study(tmp_path, finished=False)
    record = result.entries[0].record
    broken = record.epochs[0].model_copy(update={"success": float("nan")})
    record = record.model_copy(update={"epochs": (broken,)})
    view = view_of(result, entries={0: result.entries[0].model_copy(update={"record": record})})
    assert ("success", 1) not in {
        (point.key, point.step) for point in trial_content(view, 0, view.ranks()).points
    }


def test_the_digest_changes_with_what_is_shown_and_only_then(tmp_path):
    result = made_up_study(tmp_path)
    first, again = view_of(result), view_of(made_up_study(tmp_path))
    assert (
        trial_content(first, 3, first.ranks()).digest
        == trial_content(again, 3, again.ranks()).digest
    )
    running = view_of(result, finished=False)
    assert (
        trial_content(running, 3, running.ranks()).digest
        != trial_content(first, 3, first.ranks()).digest
    )


def test_the_view_asks_only_for_what_the_runs_show(tmp_path):
    view = view_of(made_up_study(tmp_path))
    state = json.loads(shared_view(view))
    contents = [trial_content(view, n, view.ranks()) for n in view.entries]
    metrics = {point.key for content in contents for point in content.points}
    params = {name for content in contents for name in content.params}
    tags = {name for content in contents for name in content.tags}
    for column in state["selectedColumns"]:
        kind, name = re.fullmatch(r"(\w+)\.`(.+)`", column).groups()
        assert name in {"metrics": metrics, "params": params, "tags": tags}[kind]
    parallel = next(c for c in state["compareRunCharts"] if c["type"] == "PARALLEL")
    assert "rank" not in parallel["selectedParams"]  # full fine-tuning has none
    assert "learning_rate" in parallel["selectedParams"]
    assert len(shared_view(view)) < 5000


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://ada:s3cret@db/x", "postgresql://ada:***@db/x"),
        ("http://u:p%40w@host:5000 failed", "http://u:***@host:5000 failed"),
        ("postgresql://h/db?password=s3cret&x=1", "postgresql://h/db?password=***&x=1"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
    ],
)
def test_no_password_is_shown(text, hidden):
    assert masked(text) == hidden
    assert "s3cret" not in ui_command(text)


def test_the_default_is_a_file_among_the_studies(tmp_path):
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    command = ui_command(default_uri(tmp_path), 5050)
    assert "mlflow ui --backend-store-uri" in command
    assert "--host 127.0.0.1 --port 5050" in command
    assert default_uri(tmp_path / "für alle") == f"sqlite:///{tmp_path}/für alle/mlflow.db"
    for name in ("q?mark", "x 50%25", "a#b ü"):
        assert sqlite_file(default_uri(tmp_path / name)) == tmp_path / name / "mlflow.db"


@pytest.mark.parametrize("uri", ["mlruns", "file:///x/mlruns", "ftp://x", "sqlit:///x"])
def test_a_place_where_mlflow_cannot_write_is_refused_at_once(uri):
    with pytest.raises(ConfigError, match="must begin with one of"):
        check_uri(uri)


def test_servers_and_databases_are_told_apart():
    assert is_server("http://localhost:5000")
    assert not is_server("postgresql+psycopg2://u@h/d")


def test_addresses_of_pages():
    assert study_url("http://h:1/", "3", "u-1") == (
        "http://h:1/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=tuner-u-1"
    )
    address = compare_url("http://h:1", "3", ["a", "b"])
    assert "runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%223%22%5D" in address


def test_without_mlflow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.tracking.session.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'tuner[tracking]'")):
        Tracker(None, "x", made_up_study(tmp_path).summary, tmp_path)


def test_legal_names():
    assert legal_name("a=b(c)") == "a_b_c_"
    assert metric_name("success", Rule.FITTED, 1e-4) == "fitted.eps_1e-04/success"


def test_constraints_are_shown_and_decide_who_is_feasible(tmp_path):
    result = made_up_study(tmp_path)
    best = min(view_of(result).ranks()[1e-3].items(), key=lambda item: item[1])[0]
    view = view_of(under_constraint(result, {best}))
    assert best not in view.ranks()[1e-3]
    content = trial_content(view, best, view.ranks())
    assert content.tags["feasible.eps_1e-03"] == "no"
    shown = {(point.key, point.step): point.value for point in content.points}
    assert shown["fitted.eps_1e-03/violation.hard_negative_loss.rise", 0] == 0.4
    assert shown["violation.hard_negative_loss.rise", 1] == 0.4
    study = study_content(view)
    assert study.params["constraints"].startswith("hard_negative_loss at most 0.05 above")
    keys = {point.key for point in study.points}
    assert "winner.eps_1e-03/seeds_within_constraints" in keys
    assert "constraints" not in study_content(view_of(result)).params
