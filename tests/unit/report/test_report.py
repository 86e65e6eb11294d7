"""The report as a file: complete, self-contained, honest, safe."""

import base64
import gzip
import json
import math
import random
import re
from html.parser import HTMLParser

import pytest

from tests.support.made_up_study import (
    START,
    about_facts,
    made_up_entry,
    made_up_study,
    under_constraint,
)
from tuner.errors import MissingExtra
from tuner.report import figures, words, write_figures, write_report
from tuner.report.importance import importances
from tuner.trial.records import StudyResultRecord, TrialState


class _Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.data: dict[str, str] = {}
        self.text: list[str] = []
        self.tags: list[str] = []
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loaded += [v for k, v in given.items() if k in ("src", "srcset", "data")]
        if tag == "link":
            self.loaded.append(given.get("href"))
        self._script = given.get("id", "") if tag == "script" else None

    def handle_data(self, data):
        if self._script is not None:
            self.data[self._script] = self.data.get(self._script, "") + data
        else:
            self.text.append(data)

    def handle_endtag(self, tag):
        self._script = None

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(result: StudyResultRecord, folder) -> _Page:
    return _Page(write_report(result, folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyResultRecord:
    return made_up_study(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> _Page:
    return page_of(study, tmp_path_factory.mktemp("report"))


def test_it_is_one_light_file_that_loads_nothing(study, tmp_path):
    path = write_report(study, tmp_path / "deep" / "report.html")
    assert path == tmp_path / "deep" / "report.html"
    assert path.stat().st_size < 3_000_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert _Page(path.read_text(encoding="utf-8")).loaded == []


def test_it_carries_plotly_whole(page):
    script = gzip.decompress(base64.b64decode(page.data["plotly-packed"]))
    assert b"Plotly" in script
    assert len(script) > 3_000_000


def test_every_winner_is_told_with_all_that_was_confirmed(study, page):
    for winner in study.winners:
        for expected in (
            words.epsilon_words(winner.epsilon),
            winner.editor,
            words.gain(winner.validation.gain),
            words.gain(winner.test_gain),
            words.gain_range(winner.test_gain_interval),
            words.deviation(winner.certificate.deviation.estimate),
            f"{winner.seeds_within_budget} of {len(winner.test)}",
            words.setting(winner.hyperparameters["learning_rate"]),
        ):
            assert expected in page.words
        for test in winner.test:
            assert words.deviation(test.certificate.deviation.estimate) in page.words


def test_seeds_versions_protocol_and_failures_are_told(study, page):
    for expected in (
        study.summary.model_fingerprint,
        study.summary.task_hash,
        "torch 2.13.0",
        "100, 101, 102",
        "confidence sequence",
        "published",
        "loss is not finite at epoch 3 <learning_rate=0.048 is too high?>",
        "tuner export capitals",
    ):
        assert expected in page.words


def test_names_and_failures_cannot_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    result = made_up_study(tmp_path, trials=8)
    entries = [
        entry.model_copy(
            update={
                "parameters": {**entry.parameters, "hook": evil + str(entry.number)},
                "failure": evil if entry.state is TrialState.FAILED else None,
            }
        )
        for entry in result.entries
    ]
    summary = result.summary.model_copy(
        update={"name": evil, "task": evil, "versions": {evil: "1"}}
    )
    evil_result = result.model_copy(update={"summary": summary, "entries": tuple(entries)})
    path = write_report(evil_result, tmp_path / "report.html")
    page = _Page(path.read_text(encoding="utf-8"))
    assert "img" not in page.tags
    assert not any("alert(1)" in text for name, text in page.data.items() if not name)
    assert evil in page.words
    for name, text in page.data.items():
        if name.endswith("-data"):
            json.loads(text)
            assert "<" not in text


def test_pointer_texts_have_no_markup_but_line_breaks(tmp_path):
    result = made_up_study(tmp_path, trials=4)
    marked = [
        entry.model_copy(update={"parameters": {"editor": "lora", "hook": "<a href='x'>y</a>"}})
        for entry in result.entries
    ]
    figure = figures.frontier(result.model_copy(update={"entries": tuple(marked)}))
    texts = [text for trace in figure.data for text in (trace.text or ())]
    assert texts
    assert not any(re.search(r"<(?!br>)", text) for text in texts)


def test_deviations_that_a_logarithm_cannot_show_keep_their_place_and_value(tmp_path):
    result = made_up_study(tmp_path, trials=3, finished=False)
    record = result.entries[0].record
    odd = [-3e-6, 0.0, 1e-12, math.nan, math.inf]
    epochs = tuple(
        epoch.model_copy(
            update={"deviation": epoch.deviation.model_copy(update={"estimate": value})}
        )
        for epoch, value in zip(record.epochs, odd, strict=False)
    )
    record = record.model_copy(update={"epochs": epochs, "answers": ()})
    entry = result.entries[0].model_copy(update={"record": record})
    figure = figures.frontier(result.model_copy(update={"entries": (entry,)}))
    points = figure.data[0]
    assert points.x[0] == points.x[1] == points.x[2] > 0
    assert points.x[3] is points.x[4] is None
    assert "−3.00e-06" in points.text[0]
    assert "≲ 0" in figure.layout.xaxis.ticktext


def test_budgets_and_winners_are_drawn(study):
    figure = figures.frontier(study)
    labels = {annotation.text for annotation in figure.layout.annotations}
    assert {"ε = 1e-3", "ε = 1e-4", "ε = 1e-5"} <= labels
    stars = next(trace for trace in figure.data if trace.name == "winner per budget")
    assert list(stars.y) == [winner.validation.success for winner in study.winners]


def test_the_best_so_far_never_falls_and_ends_at_the_best(study):
    for over_time in (False, True):
        figure = figures.best_so_far(study, over_time=over_time)
        for trace, epsilon in zip(figure.data, study.summary.epsilons, strict=True):
            assert list(trace.y) == sorted(trace.y)
            best = max(e.record.answer(epsilon).gain for e in study.entries if e.record.answers)
            assert trace.y[-1] == pytest.approx(best)


def test_importance_finds_what_mattered(study):
    found = importances(study)
    assert found.refusal is None
    assert found.rows[0].name == "learning_rate"
    assert found.rows[0].low > 0


def test_importance_is_refused_where_it_would_be_guessing(tmp_path):
    few = importances(made_up_study(tmp_path, trials=9))
    assert "too few" in few.refusal
    result = made_up_study(tmp_path, trials=30)
    successes = [entry.record for entry in result.entries]
    random.Random(3).shuffle(successes)
    shuffled = [
        entry.model_copy(update={"record": record, "state": TrialState(record.outcome.value)})
        for entry, record in zip(result.entries, successes, strict=True)
    ]
    blind = importances(result.model_copy(update={"entries": tuple(shuffled)}))
    assert "too little to say" in blind.refusal


@pytest.mark.parametrize("trials", [0, 1, 5])
def test_an_unfinished_study_says_so(tmp_path, trials):
    result = made_up_study(tmp_path, trials=max(trials, 1), finished=False)
    result = result.model_copy(update={"entries": result.entries[:trials]})
    page = page_of(result, tmp_path)
    assert "Not finished yet" in page.words
    assert "too few to tell" in page.words


def test_a_study_whose_trials_all_failed_is_reported(tmp_path):
    failed = made_up_entry(random.Random(0), 7, START)
    result = made_up_study(tmp_path, trials=1, finished=False)
    result = result.model_copy(update={"entries": (failed,)})
    assert "1 failed" in page_of(result, tmp_path).words


def test_the_same_study_gives_the_same_file(study, tmp_path):
    first = write_report(study, tmp_path / "a.html").read_bytes()
    assert first == write_report(study, tmp_path / "b.html").read_bytes()


def test_figures_stand_alone(study, tmp_path):
    paths = write_figures(study, tmp_path)
    assert [path.name for path in paths] == ["frontier.html", "best_so_far.html"]
    assert all(_Page(path.read_text(encoding="utf-8")).loaded == [] for path in paths)


def test_without_plotly_the_extra_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.report.page.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=re.escape("tuner[report]")):
        write_report(study, tmp_path / "report.html")


def test_facts_are_shown_with_their_figures_and_other_tasks_as_before(study, page, tmp_path):
    told = page_of(about_facts(study), tmp_path).words
    assert "efficacy 0.900" in told
    assert "specificity 0.750" in told
    assert "edit score 0.812" in told
    assert "harmonic mean" in told
    assert "efficacy" not in page.words


def test_constraints_are_told_and_who_breaks_them_leads_nowhere(study, tmp_path):
    best = max(
        (entry for entry in study.entries if entry.record and entry.record.answers),
        key=lambda entry: entry.record.answer(1e-3).gain,
    )
    held = under_constraint(study, {best.number})
    page = page_of(held, tmp_path)
    assert "hard_negative_loss at most 0.05 above the base model's" in page.words
    assert "constraints: 2 of 3" in page.words
    assert "breaks hard_negative_loss.rise by 40%" in page.words
    assert "hard_negative_loss.rise by 25%" in page.words
    free, kept = (
        figures.best_so_far(result, over_time=False).data[0].y[-1] for result in (study, held)
    )
    assert kept < free == best.record.answer(1e-3).gain
    unfinished = StudyResultRecord(summary=held.summary, entries=held.entries)
    page = _Page(write_report(unfinished, tmp_path / "unfinished.html").read_text())
    assert "confirmed yet" in page.words


def test_without_constraints_none_are_mentioned(page):
    assert "constraint" not in page.words


def test_problems_are_shown_with_drawdown_and_what_a_memory_takes_for_its_edits(study, tmp_path):
    def told(value, seed=None):
        if isinstance(value, list):
            return [told(item, seed) for item in value]
        if not isinstance(value, dict):
            return value
        if "row_success" in value:
            # The first seed's memory takes no prompt, so that it has no precision.
            precision = {} if seed == 0 else {"scope_precision": 0.875}
            return value | {"efficacy": 0.9, "drawdown": 0.025, "scope_auc": 0.75} | precision
        if "certificate" in value and "seed" in value:
            seed = value["seed"]
        return {key: told(item, seed) for key, item in value.items()}

    page = page_of(StudyResultRecord.model_validate(told(study.model_dump(mode="json"))), tmp_path)
    assert "drawdown 0.025" in page.words
    assert "scope auc 0.750" in page.words
    assert "how far the edited model says something else than the base model" in page.words
    assert "harmonic mean" not in page.words


def test_seeds_without_a_figure_keep_their_columns(study):
    scores = study.winners[0].test[0].answer.scores
    some = scores.model_copy(update={"efficacy": 0.5, "scope_auc": 0.25})
    assert words.fact_cells(some, ["efficacy", "scope_precision", "scope_auc"]) == [
        "0.500",
        "–",
        "0.250",
    ]
    assert words.fact_names(study.winners[0].test) == []
