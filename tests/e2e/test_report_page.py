"""The report as a person sees it, on a desk and on a phone."""

import pytest

from tests.support.browser import open_browser, until
from tests.support.made_up_study import made_up_study
from tuner.report import write_figures, write_report

_DRAW_ALL = """
    window.dispatchEvent(new Event("beforeprint"));
    return document.querySelectorAll(".plot:not([data-drawn])").length === 0;
"""
_CUT_OFF = """
    const all = [...document.querySelectorAll("body *")];
    const wide = all.filter((e) => !e.closest(".scroll, pre, svg")
        && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
    return wide.map((e) => e.tagName + "." + e.className);
"""
# Titles and tick labels of each plot that lie on one another.
_OVERLAPS = """
    const hit = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
        && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    const found = [];
    for (const plot of document.querySelectorAll(".plot")) {
        const texts = [...plot.querySelectorAll(".xtick text, .ytick text, .xtitle, .ytitle, "
            + ".legendtext, .annotation-text")].filter((t) => t.textContent.trim());
        const boxes = texts.map((t) => [t.textContent, t.getBoundingClientRect()]);
        boxes.forEach(([s, a], i) => boxes.slice(i + 1).forEach(([t, b]) => {
            if (hit(a, b)) found.push(plot.id + ": " + s + " / " + t);
        }));
    }
    return found;
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_drawn_and_nothing_is_cut_off(tmp_path, width):
    report = write_report(made_up_study(tmp_path), tmp_path / "report.html")
    with open_browser(tmp_path / "profile", width=width, height=900) as browser:
        browser.get(report.as_uri())
        until(lambda: browser.execute_script(_DRAW_ALL))
        plots = browser.execute_script("return document.querySelectorAll('.plot').length")
        drawn = browser.execute_script(
            "return document.querySelectorAll('.plot .xaxislayer-above').length"
        )
        assert plots == drawn >= 8
        assert browser.execute_script(_CUT_OFF) == []
        assert browser.execute_script(_OVERLAPS) == []
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_figure_page_is_drawn(tmp_path):
    frontier, _ = write_figures(made_up_study(tmp_path), tmp_path)
    with open_browser(tmp_path / "profile", width=800, height=700) as browser:
        browser.get(frontier.as_uri())
        until(lambda: browser.execute_script("return !!document.querySelector('.plot .point')"))
