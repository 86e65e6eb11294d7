"""MLflow's own pages show a study as a person compares trials: table, charts, frontier."""

import re
from pathlib import Path

import pytest

from tests.support.browser import open_browser, until
from tests.support.made_up_study import made_up_study
from tests.support.mlflow_server import MlflowServer
from tuner.report import write_figures, write_report
from tuner.tracking import compare_url, study_url, sync

pytest.importorskip("mlflow")

_TEXT = "return document.body.innerText"


def _charts(browser) -> list[str]:
    script = (
        "return [...document.querySelectorAll('.js-plotly-plot .xtitle')].map(t => t.textContent)"
    )
    return list(browser.execute_script(script))


@pytest.fixture
def server(tmp_path):
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def test_trials_can_be_compared_in_mlflow(tmp_path, server):
    result = made_up_study(tmp_path)
    report = write_report(result, tmp_path / "report.html")
    figures = write_figures(result, tmp_path / "figures")
    sent = sync(server.uri, "tuner", result, tmp_path, report_path=report, figures=figures)
    assert sent.complete, sent.message
    uid = result.summary.uid
    best = max(
        (e for e in result.entries if e.record.answers), key=lambda e: e.record.answer(1e-4).gain
    )

    with open_browser(tmp_path / "profile", width=1800, height=1200) as browser:
        # The table: trials only, best first, hyperparameters beside answers.
        browser.get(study_url(server.uri, sent.experiment_id, uid))
        until(
            lambda: f"{best.number:04d} {best.record.editor}" in browser.execute_script(_TEXT), 60
        )
        text = browser.execute_script(_TEXT)
        assert "30 matching runs" in text
        for column in ("fitted.eps_1e-04/success", "fitted.eps_1e-04/gain"):
            assert column in text
        names = re.findall(r"\d{4} (?:lora|full_finetuning)", text)
        assert names[0].startswith(f"{best.number:04d}")
        _keep(browser, tmp_path, "table")

        # The charts: the frontier first, drawn for all trials.
        browser.get(study_url(server.uri, sent.experiment_id, uid, charts=True))
        until(lambda: "deviation_log10" in _charts(browser), 60)
        assert "fitted.eps_1e-04/deviation" in _charts(browser)
        assert "Parallel Coordinates" in browser.execute_script(_TEXT)
        _keep(browser, tmp_path, "charts")

        # MLflow's comparison of all trials.
        browser.get(compare_url(server.uri, sent.experiment_id, sent.trial_runs.values()))
        until(lambda: "Comparing 30 Runs" in browser.execute_script(_TEXT), 60)
        assert "Scatter Plot" in browser.execute_script(_TEXT)
        _keep(browser, tmp_path, "compare")

        # The report among the study's artifacts, drawn inside MLflow.
        page = f"{server.uri}/#/experiments/{sent.experiment_id}/runs/{sent.study_run}"
        browser.get(f"{page}/artifacts/report/report.html")
        frame = until(lambda: browser.find_elements("css selector", "iframe"), 60)[0]
        browser.switch_to.frame(frame)
        until(lambda: "The best edit per budget" in browser.execute_script(_TEXT), 60)
        # Plots are drawn when they come into view.
        browser.execute_script("document.getElementById('frontier').scrollIntoView()")
        until(lambda: browser.execute_script("return !!document.querySelector('.plot .point')"), 60)
        browser.switch_to.default_content()
        _keep(browser, tmp_path, "artifact")


def _keep(browser, folder: Path, name: str) -> None:
    browser.save_screenshot(str(folder / f"{name}.png"))
