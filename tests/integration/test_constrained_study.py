"""Studies whose edits must keep more than the budget, with real Ray, Optuna and workers."""

import shutil
from pathlib import Path

import pytest

from tests.support.search_world import make_world, tiny_config
from tuner.errors import ConfigError
from tuner.search import Study, open_study
from tuner.search.storage.ledger import Ledger

OF_TASK = "related_loss.rise"
OF_STUDY = "hard_negative_loss.rise"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world; its task limits what may happen to related text, of other colours."""
    folder = make_world(tmp_path_factory.mktemp("world") / "world")
    with (folder / "task" / "task.yaml").open("a") as card:
        card.write("constraints: [{metric: related_loss, rise: 0.01}]\n")
    return folder


def _study(world: Path, studies: Path, rise: float, **changes: object) -> Study:
    given = {"constraints": [{"metric": "hard_negative_loss", "rise": rise}], "test_seeds": 1}
    return Study(tiny_config(world, 4, **{**given, **changes}), folder=studies)


def test_a_study_keeps_its_task_s_constraints_and_its_own(
    world: Path, tmp_path: Path, shared_ray: str
) -> None:
    study = _study(world, tmp_path, 0.5, address=shared_ray)
    result = study.run()
    names = ["budget", OF_TASK, OF_STUDY]
    told = Ledger.read(study.folder, "tiny").history()
    assert [list(trial.constraints) for trial in told] == [names] * 4
    answers = [entry.record.answer(1e-2) for entry in result.trials if entry.record is not None]
    assert len(answers) == 4
    for trial, answer in zip(told, answers, strict=True):
        if answer.epoch is not None:
            assert {name: trial.constraints[name] for name in names[1:]} == answer.violations
    # Alone, the budget would allow these edits at their full success.
    assert any(answer.alpha < 1 for answer in answers)
    assert result.record.winners
    for winner in result.record.winners:
        assert winner.validation.feasible
        assert winner.validation.violations[OF_TASK] <= 0
        (tested,) = winner.test
        assert set(tested.answer.violations) == {OF_TASK, OF_STUDY}
        assert tested.answer.alpha <= winner.validation.alpha
        assert winner.seeds_within_constraints == int(tested.answer.keeps_constraints)
    assert [one.name for one in open_study(study.folder.root).record.summary.constraints] == [
        OF_TASK,
        OF_STUDY,
    ]
    with pytest.raises(ConfigError, match=r"constraints: was \[.*0.5.*\], is \[.*0.1"):
        _study(world, tmp_path, 0.1).run()
    card = world / "task" / "task.yaml"
    before = card.read_text()
    try:
        card.write_text(before.replace("rise: 0.01", "rise: 0.02"))
        with pytest.raises(ConfigError, match=r"task constraints: was .*0.01.*, is .*0.02"):
            _study(world, tmp_path, 0.5).run()
    finally:
        card.write_text(before)


def test_what_the_task_cannot_measure_is_said_before_any_trial(world: Path, tmp_path: Path) -> None:
    task = tmp_path / "task"
    shutil.copytree(world / "task", task)
    (task / "test" / "related.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"related_loss\.rise cannot be judged: the test split"):
        _study(world, tmp_path, 0.5, task=str(task))
    assert not list(tmp_path.glob("**/trials"))
