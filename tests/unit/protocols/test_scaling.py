"""Sweeps: every point once, on edits of its own, resumable; the table's means and intervals."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import Run
from tests.support.search_world import make_world
from tuner.editing.corpus import GeneralText
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind, Split, SuccessCriterion, Task
from tuner.editors import find_editor
from tuner.errors import ConfigError
from tuner.evaluation.statistics.confidence import mean_interval
from tuner.protocols.scaling import ScalingPoint, ScalingRun, drawn, summarise
from tuner.report import write_scaling
from tuner.trial.records import SplitName

COUNTRIES = (("Mauritius", "Port Louis"), ("Togo", "Lome"), ("Chile", "Santiago"))


@pytest.fixture
def task() -> Task:
    """Three edits per split, each with a row in and one out of its scope."""

    def split(frame: str) -> Split:
        def rows(text: str, target: str | None = None) -> ExampleSet:
            return ExampleSet(
                loss=LossKind.LIKELIHOOD,
                rows=tuple(
                    Example(
                        prompt=text.format(country),
                        target=target or f" {city}",
                        contrast=" town",
                        record=country,
                    )
                    for country, city in COUNTRIES
                ),
            )

        return Split(
            canonical=rows(f"{frame} capital of {{}} is"),
            ood=rows(f"{frame} big city of {{}} is"),
            hard_negatives=rows("a town in {} and", " big"),
        )

    return Task(
        name="capitals",
        description="Three capitals.",
        loss=LossKind.LIKELIHOOD,
        success=SuccessCriterion.LIKELIER,
        source="made up",
        licence="Apache-2.0",
        val=split("The"),
        test=split("a"),
    )


@pytest.fixture
def editors() -> list[Editor]:
    return [find_editor("lora").model_validate({"learning_rate": 1e-2, "epochs": 1, "rank": 2})]


def point(edits: int, draw: int, success: float, drawdown: float | None, **changed) -> ScalingPoint:
    fields = {
        "key": f"{edits} {draw}",
        "editor": "lora",
        "edits": edits,
        "draw": draw,
        "seed": draw,
        "success": success,
        "drawdown": drawdown,
        "alpha": 1.0,
        "deviation": 0.0,
        "verdict": None,
        "seconds": 1.0,
    }
    return ScalingPoint.model_validate(fields | changed)


def test_draws_take_the_split_s_edits_in_turn(task: Task) -> None:
    def records(count: int, draw: int) -> list[str | None]:
        changed = drawn(task, SplitName.VAL, count, draw)
        assert changed.simultaneous_edits == count
        assert changed.test == task.test
        assert changed.val.ood == task.val.ood
        return [row.record for row in changed.val.canonical.rows[:count]]

    assert records(1, 0) == records(1, 3) == ["Mauritius"]
    assert records(1, 1) == ["Togo"]
    assert records(2, 1) == ["Chile", "Mauritius"]
    assert drawn(task, SplitName.VAL, 1, 0).hash != drawn(task, SplitName.VAL, 1, 1).hash


def test_a_sweep_runs_every_point_once_and_goes_on_where_it_was(
    neox: LanguageModel,
    task: Task,
    editors: list[Editor],
    general: GeneralText,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sweep(counts: tuple[int, ...], **changed) -> ScalingRun:
        given = {"counts": counts, "draws": 2, "epsilon": 0.1} | changed
        return ScalingRun(neox, task, editors, general, tmp_path / "sweep", **given)

    first = list(sweep((1,)).run())
    path = tmp_path / "sweep/points.jsonl"
    assert [(one.edits, one.draw, one.seed) for one in first] == [(1, 0, 0), (1, 1, 1)]
    assert len(path.read_text().splitlines()) == 2
    # As a run leaves it that is killed while it writes.
    with path.open("a") as file:
        file.write('{"key": "ab')
    both = sweep((3, 1))
    points = list(both.run())
    assert points[:2] == first
    assert [(one.edits, one.draw) for one in points[2:]] == [(3, 0), (3, 1)]
    assert len(points) == both.total
    lines = path.read_text().splitlines()
    assert [json.loads(line)["edits"] for line in lines] == [1, 1, 3, 3]

    def refuse(*given: object) -> None:
        raise AssertionError("a finished point was run again")

    with monkeypatch.context() as patch:
        patch.setattr(ScalingRun, "_point", refuse)
        assert list(sweep((3, 1)).run()) == points
    # What a point depends on is part of it.
    assert not {one.key for one in sweep((1,), epsilon=0.2).run()} & {one.key for one in points}
    assert len(path.read_text().splitlines()) == 6
    neox.check_unchanged()


def test_a_line_that_is_no_point_is_named(
    neox: LanguageModel, task: Task, editors: list[Editor], general: GeneralText, tmp_path: Path
) -> None:
    (tmp_path / "points.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"points\.jsonl:1: .*is not a point"):
        list(ScalingRun(neox, task, editors, general, tmp_path, counts=(1,)).run())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"counts": (1, 4)}, "4 edits at once .* val split of capitals has 3"),
        ({"counts": (1, 1)}, "must be positive and differ"),
        ({"counts": (0,)}, "must be positive and differ"),
        ({"draws": 0}, "At least one draw"),
        ({"editors": []}, "editors of different names"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_run(
    changed: dict[str, object],
    said: str,
    neox: LanguageModel,
    task: Task,
    editors: list[Editor],
    general: GeneralText,
    tmp_path: Path,
) -> None:
    given = {"counts": (1,), "editors": editors} | changed
    with pytest.raises(ConfigError, match=said):
        ScalingRun(neox, task, general=general, folder=tmp_path, **given)


def test_rows_are_means_over_draws_of_what_was_paired() -> None:
    points = [
        point(5, 0, 0.80, 0.10),
        point(5, 1, 0.78, 0.12, failure="NaN"),
        point(1, 0, 1.0, 0.0),
        point(1, 1, 1.0, 0.0),
    ]
    one, five = summarise(points)
    assert (one.edits, five.edits, five.draws, five.failed) == (1, 5, 2, 1)
    assert five.success.mean == pytest.approx(0.79)
    assert five.drawdown is not None
    assert five.difference is not None
    assert five.drawdown.mean == pytest.approx(0.11)
    assert five.difference.mean == pytest.approx(0.68)
    interval = five.difference.interval
    assert interval is not None
    # Student's t with one degree of freedom: 12.706 standard errors, of which one is 0.02.
    assert interval.high - 0.68 == pytest.approx(12.706 * 0.02, rel=1e-3)
    assert one.success.interval is None


def test_intervals_of_few_draws_end_where_shares_do() -> None:
    (row,) = summarise([point(1, 0, 0.9, 0.0), point(1, 1, 0.1, 0.3)])
    assert row.success.interval is not None
    assert (row.success.interval.low, row.success.interval.high) == (0.0, 1.0)
    assert row.drawdown is not None
    assert row.drawdown.interval is not None
    assert row.drawdown.interval.low == 0.0
    assert row.difference is not None
    assert row.difference.interval is not None
    assert row.difference.interval.high == 1.0
    assert row.difference.interval.low < -1


def test_a_task_without_drawdown_has_no_difference() -> None:
    (row,) = summarise([point(1, 0, 0.8, None), point(1, 1, 0.6, None)])
    assert row.drawdown is None
    assert row.difference is None


def test_one_value_and_equal_values_have_no_interval() -> None:
    assert mean_interval([0.5]) is None
    assert mean_interval([0.5, 0.5, 0.5]) is None
    found = mean_interval([0.0, 1.0, 2.0], confidence=0.5)
    assert found is not None
    assert (found.low + found.high) / 2 == pytest.approx(1.0)


def test_the_plot_shows_each_figure_that_was_measured(tmp_path: Path) -> None:
    rows = summarise([point(k, d, 0.5 + d / 4, d / 10) for k in (1, 5) for d in range(2)])
    page = write_scaling(rows, "Simultaneous edits", tmp_path / "sweep.html").read_text()
    for title in ("edit success (ES)", "drawdown (DD)", "simultaneous edits"):
        assert title in page
    bare = [row.model_copy(update={"drawdown": None, "difference": None}) for row in rows]
    assert "drawdown" not in write_scaling(bare, "Edits", tmp_path / "sweep.html").read_text()


def test_the_verb_writes_points_table_and_plot(run: Run, tmp_path: Path) -> None:
    world, out = make_world(tmp_path / "world"), tmp_path / "sweep"
    task = world / "task"
    for split in ("val", "test"):
        things = len((task / split / "canonical.jsonl").read_text().splitlines())
        for part in ("canonical", "ood", "hard_negatives"):
            path = task / split / f"{part}.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            numbered = [row | {"record": str(n % things)} for n, row in enumerate(rows)]
            path.write_text("".join(json.dumps(row) + "\n" for row in numbered))
    given = ["--task", str(task), "--general", str(world / "general.txt")]
    given += ["--model", str(world / "model"), "--epsilon", "1e-2", "--draws", "2"]
    settings = ["--editor", "lora", "--set", "lora.learning_rate=3e-2", "--set", "epochs=1"]
    counts = ["--edits", "1", "--edits", "2"]
    command = ["sweep", *given, *settings, *counts, "--out", str(out)]
    code, printed, err = run(*command, "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert [(row["editor"], row["edits"]) for row in told["rows"]] == [("lora", 1), ("lora", 2)]
    assert len(told["points"]) == 4
    assert (out / "table.csv").read_text().startswith("editor,edits,draws,failed,success,")
    assert (out / "sweep.html").is_file()
    code, printed, _ = run(*command)
    assert code == 0
    assert "ES − DD" in printed
    assert len((out / "points.jsonl").read_text().splitlines()) == 4
    code, _, err = run(*command, "--set", "rome.layer=1")
    assert code == 2
    assert "no --editor is called 'rome'" in err
    code, _, err = run(*command, "--edits", "7000")
    assert code == 2
    assert "7000 edits at once need" in err
