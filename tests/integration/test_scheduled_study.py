"""A study whose scheduler ends trials: on real Ray, over a restart, and in what is shown of it."""

from pathlib import Path

import pytest

from tests.support.command_line import Run
from tests.support.search_world import make_world, tiny_config
from tuner.errors import ConfigError
from tuner.search import Progress, Study, open_study
from tuner.trial.records import TrialState


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "world")


def test_a_scheduler_ends_trials_which_count_once_and_keep_their_answers(
    world: Path, tmp_path: Path, run: Run
) -> None:
    asked = {"scheduler": "successive_halving", "sampler": "random", "test_seeds": 0}
    seen: list[Progress] = []
    study = Study(tiny_config(world, 6, **asked), folder=tmp_path)
    record = study.run(seen.append).record
    states = [entry.state for entry in record.entries]
    pruned = [entry for entry in record.entries if entry.state is TrialState.PRUNED]
    assert len(states) == 6
    assert set(states) == {TrialState.COMPLETED, TrialState.PRUNED}
    assert record.summary.scheduler == "successive_halving"
    assert seen[-1].pruned == len(pruned)
    assert (seen[-1].done, seen[-1].failed) == (6, 0)
    for entry in pruned:
        assert entry.record is not None
        assert entry.record.pruned
        assert len(entry.record.epochs) in (1, 3)  # a rung, of six epochs
        assert len(entry.record.answers) == 9  # three rules, three budgets
    # Continued it asks for the same, and goes on from what was pruned.
    with pytest.raises(ConfigError, match="scheduler"):
        Study(tiny_config(world, 7, **{**asked, "scheduler": "median"}), folder=tmp_path).run()
    longer = Study(tiny_config(world, 7, **asked), folder=tmp_path).run().record
    assert [entry.state for entry in longer.entries][:6] == states
    assert open_study(tmp_path / "tiny").record == longer

    _, out, _ = run("status", "tiny", "--folder", str(tmp_path))
    assert f"{len([e for e in longer.entries if e.state == 'pruned'])} pruned" in out
    _, out, _ = run("status", "--folder", str(tmp_path))
    assert "7/7" in out
