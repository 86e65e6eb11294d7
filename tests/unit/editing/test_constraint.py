"""Constraints: what a card may say, what they measure, which of two is stricter."""

import hashlib
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from tuner.editing.constraint import Constraint, strictest
from tuner.editing.model import load_model
from tuner.editing.task import Task
from tuner.editing.task_folder import load_task, save_task
from tuner.errors import ConfigError
from tuner.evaluation.constraints import WORST, check_measured, violations
from tuner.evaluation.metrics import METRICS
from tuner.evaluation.scores import Scores
from tuner.evaluation.success import SuccessMeter
from tuner.files.shipped import shipped_folder


def constraint(**given: object) -> Constraint:
    return Constraint.model_validate(given)


def test_every_score_but_success_can_be_constrained() -> None:
    """A new score in `Scores` wants a name in `Metric`."""
    numbers = {
        name for name, field in Scores.model_fields.items() if field.annotation == float | None
    }
    # What a memory takes for its edits' is a figure of the memory: the base model has none.
    of_memories = {name for name in numbers if name.startswith("scope_")}
    assert set(METRICS.names()) == numbers - of_memories


@pytest.mark.parametrize(
    ("given", "edited", "base", "violation"),
    [
        ({"metric": "hard_negative_loss", "rise": 0.05}, 2.06, 2.0, 0.2),
        ({"metric": "hard_negative_loss", "rise": 0.05}, 2.0, 2.0, -1.0),
        ({"metric": "hard_negative_loss", "ceiling": 2.0}, 3.0, 9.0, 0.5),
        ({"metric": "exact", "drop": 0.05}, 0.95, 1.0, 0.0),  # met exactly, in floats too
        ({"metric": "exact", "drop": 0.1}, 0.7, 1.0, 2.0),
        ({"metric": "exact", "floor": 0.8}, 0.6, 1.0, 0.25),
        ({"metric": "exact", "floor": 0.8}, 0.8, 0.0, 0.0),
    ],
)
def test_a_violation_is_a_share_of_the_number_given(
    given: dict[str, object], edited: float, base: float, violation: float
) -> None:
    assert constraint(**given).violation(edited, base) == pytest.approx(violation)


def test_violations_go_by_name_and_are_clipped() -> None:
    limits = (
        constraint(metric="hard_negative_loss", rise=0.01),
        constraint(metric="related_loss", rise=0.01),
        constraint(metric="exact", floor=0.5),
    )
    base = Scores(success=0.0, exact=1.0, hard_negative_loss=1.0, related_loss=1.0)
    edited = Scores(success=1.0, exact=0.6, hard_negative_loss=99.0, related_loss=float("nan"))
    found = violations(limits, edited, base)
    assert found["hard_negative_loss.rise"] == WORST == found["related_loss.rise"]
    assert found["exact.floor"] == pytest.approx(-0.2)


def test_a_score_without_rows_cannot_be_constrained(task: Task) -> None:
    check_measured([constraint(metric="hard_negative_loss", rise=1)], task)
    with pytest.raises(ConfigError, match=r"related_loss.rise cannot be judged: the val split of"):
        check_measured([constraint(metric="related_loss", rise=1)], task)


@pytest.mark.parametrize("name", ["country_capital", "counterfact_world", "zsre_world"])
def test_what_counts_as_measured_is_what_is_measured(name: str) -> None:
    found = load_task(name)
    model = load_model("builtin:neox")
    part = found.val.model_copy(
        update={
            key: getattr(found.val, key)[:2] for key in ("related", "neighbours", "generations")
        }
    )
    scores = SuccessMeter(model, part, found.threshold, found.success).scores()
    for metric in METRICS.names():
        measured = getattr(scores, metric) is not None
        limit = {"rise" if METRICS.find(metric).lower_is_better else "drop": 1.0}
        if measured:
            check_measured([constraint(metric=metric, **limit)], found)
        else:
            with pytest.raises(ConfigError, match="cannot be judged"):
                check_measured([constraint(metric=metric, **limit)], found)


def test_of_two_limits_of_one_name_the_stricter_counts() -> None:
    loose, strict = constraint(metric="exact", floor=0.5), constraint(metric="exact", floor=0.7)
    rise = constraint(metric="related_loss", rise=0.5)
    tighter = constraint(metric="related_loss", rise=0.1)
    assert strictest((loose, rise, strict, tighter)) == (strict, tighter)
    assert strictest((strict, loose)) == (strict,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "exact"}, "exactly one of `drop` and `floor`, but got none"),
        ({"metric": "exact", "rise": 0.1}, "exactly one of `drop` and `floor`, but got rise"),
        ({"metric": "related_loss", "floor": 1}, "exactly one of `rise` and `ceiling`"),
        ({"metric": "related_loss", "rise": 1, "ceiling": 2}, "but got rise and ceiling"),
        ({"metric": "related_loss", "rise": 0}, "greater than 0"),
        ({"metric": "niceness", "floor": 1}, "Known: .*exact, .*hard_negative_loss"),
        ({"metric": "exact", "minimum": 1}, "Extra inputs"),
    ],
)
def test_what_makes_no_constraint_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        constraint(**given)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    folder = tmp_path / "capital"
    shutil.copytree(shipped_folder("datasets") / "country_capital", folder)
    return folder / "task.yaml"


def test_a_card_may_carry_several_constraints(card: Path) -> None:
    plain = load_task(card.parent)
    with card.open("a") as file:
        file.write(
            "constraints:\n"
            "  - {metric: hard_negative_loss, rise: 5e-2}\n"
            "  - {metric: exact, floor: 0.1}\n"
        )
    task = load_task(card.parent)
    assert [one.name for one in task.constraints] == ["hard_negative_loss.rise", "exact.floor"]
    assert task.constraints[0].rise == 0.05
    assert task.hash != plain.hash
    save_task(task, card.parent)
    assert load_task(card.parent) == task


def test_without_constraints_a_task_keeps_its_hash_and_its_card(card: Path, task: Task) -> None:
    # Studies and bundles from before tasks could carry constraints know them by this hash.
    before = task.model_dump_json(exclude={"constraints"})
    assert task.hash == hashlib.sha256(before.encode()).hexdigest()
    plain = load_task(card.parent)
    save_task(plain, card.parent)
    assert "constraints" not in card.read_text()
    assert load_task(card.parent).hash == plain.hash


def test_mistakes_in_a_card_are_named_with_their_line(card: Path) -> None:
    text = card.read_text().rstrip() + "\n"
    first = text.count("\n") + 1
    card.write_text(
        text + "constraints:\n"
        "  - {metric: hard_negative_lost, rise: 0.05}\n"
        "  - {metric: exact, rise: 0.05}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_task(card.parent)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{card}:{first + 1}: constraints.0.metric: ")
    assert "'hard_negative_loss'" in lines[0]
    assert lines[1].startswith(f"{card}:{first + 2}: constraints.1: exact needs exactly one of")
    card.write_text(text + "constraints: [{metric: exact, floor: 1}, {metric: exact, floor: 0.5}]")
    with pytest.raises(ConfigError, match=rf":{first}: constraints: .*exact.floor stands twice"):
        load_task(card.parent)


def test_a_task_that_names_an_outsider_s_metric_imports_nothing(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (card.parent / "stranger.py").write_text("raise SystemExit('this was run')\n")
    monkeypatch.chdir(card.parent)
    monkeypatch.syspath_prepend(card.parent)
    limit = "constraints: [{metric: 'stranger:Metric', floor: 0.5}]\n"
    card.write_text(card.read_text().rstrip() + "\n" + limit)
    task = load_task(card.parent)
    with pytest.raises(ConfigError, match="A task alone does not make tuner run code"):
        check_measured(task.constraints, task)
