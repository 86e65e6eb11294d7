"""Whole studies on a tiny world: real Ray, Optuna, workers and evaluator."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import search_world
from tests.support.search_world import make_world, tiny_config
from tuner.editing.editor import Editor
from tuner.errors import ConfigError, StudyFailed
from tuner.evaluation.deviation.budget import Verdict
from tuner.search import Progress, Study, StudyPhase, StudyResult, open_study
from tuner.search.config import StudyConfig
from tuner.search.ray import worker
from tuner.search.ray.worker import make_evaluator
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import SplitName, StudyResultRecord, TrialEntry, TrialRecord, TrialState
from tuner.trial.result import TrialResult
from tuner.trial.run import PruneRule


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "world")


class Followed:
    """An observer that remembers, and is broken from some moment on."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.changes: list[tuple[int, str]] = []
        self.result: StudyResultRecord | None = None
        self.closed = False

    def trial_changed(self, entry: TrialEntry) -> None:
        self.changes.append((entry.number, str(entry.state)))
        if self.broken:
            raise RuntimeError("the server is away")

    def study_finished(self, result: StudyResultRecord) -> None:
        self.result = result

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def finished(
    world: Path, tmp_path_factory: pytest.TempPathFactory, shared_ray: str
) -> tuple[StudyResult, list[Progress], Followed]:
    """A study of six trials, with two workers."""
    seen: list[Progress] = []
    observer = Followed()
    study = Study(
        tiny_config(world, 6, workers=2, address=shared_ray),
        folder=tmp_path_factory.mktemp("studies"),
        observers=[lambda summary: observer],
    )
    return study.run(seen.append), seen, observer


def test_a_study_searches_confirms_and_retests(
    finished: tuple[StudyResult, list[Progress], Followed],
) -> None:
    result, seen, observer = finished
    assert [entry.number for entry in result.trials] == list(range(6))
    assert all(entry.state is TrialState.COMPLETED for entry in result.trials)
    best = result.best(1e-2)
    # Its fresh text keeps the budget, but is too little for anybody to rely on.
    assert best.winner.certificate.deviation.upper <= best.winner.epsilon
    assert best.winner.certificate.verdict is Verdict.UNRESOLVED
    assert best.answer.gain > 0.5
    assert best.bundle.manifest.certificate == best.winner.certificate
    assert best.bundle.manifest.hyperparameters == best.hyperparameters
    assert len(best.winner.test) == 2
    assert len({one.seed for one in best.winner.test}) == 2
    assert best.winner.test_gain is not None
    assert best.winner.test_gain_interval is not None
    assert best.winner.test_gain_interval.low <= best.winner.test_gain
    phases = [one.phase for one in seen]
    assert phases[0] is StudyPhase.STARTING
    assert phases[-1] is StudyPhase.FINISHED
    assert {StudyPhase.SEARCH, StudyPhase.CONFIRM, StudyPhase.RETEST} <= set(phases)
    assert max(one.running for one in seen) == 2
    assert seen[-1].incumbents[0].gain == best.answer.gain
    assert observer.result == result.record
    assert observer.closed
    assert {number for number, state in observer.changes if state == "completed"} == set(range(6))


def test_only_the_best_bundles_are_kept(
    finished: tuple[StudyResult, list[Progress], Followed],
) -> None:
    kept = [epsilon for entry in finished[0].trials for epsilon, _ in entry.bundles]
    assert all(kept.count(epsilon) <= 2 for epsilon in set(kept))


def _no_ray(*_: object) -> None:
    raise AssertionError("Ray is started")


def test_a_finished_study_is_read_and_run_again_without_ray(
    world: Path,
    finished: tuple[StudyResult, list[Progress], Followed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = finished[0]
    folder = result.record.summary.folder
    assert open_study(folder).record.winners == result.record.winners
    monkeypatch.setattr("tuner.search.ray.executor._connect", _no_ray)
    again = Study(tiny_config(world, 6, workers=2), folder=folder.parent).run()
    assert again.record.winners == result.record.winners
    with pytest.raises(ConfigError, match="seed: was 0, is 1"):
        Study(tiny_config(world, 6, seed=1), folder=folder.parent).run()


def test_a_broken_observer_hurts_nobody(world: Path, tmp_path: Path, shared_ray: str) -> None:
    observer = Followed(broken=True)
    config = tiny_config(world, 2, address=shared_ray, test_seeds=0)
    study = Study(config, folder=tmp_path, observers=[lambda summary: observer])
    assert len(study.run().trials) == 2
    assert observer.closed


def _failing_evaluator(config: StudyConfig) -> Evaluator:
    """An evaluator on which every second trial dies with its worker the first time, or is a bug."""
    evaluator = make_evaluator(config)
    run = worker.run_editor

    def troubled(
        evaluator: Evaluator, editor: Editor, *, seed: int, prunes: PruneRule | None
    ) -> TrialResult:
        mark = Path(config.task).parent / f"died-{config.name}-{seed}"
        if seed == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 3:
            raise TypeError("an editor with a bug")
        if seed == 4:
            next(evaluator.model.network.parameters()).data.add_(1.0)
        return run(evaluator, editor, seed=seed, prunes=prunes)

    worker.run_editor = troubled
    return evaluator


def test_failing_trials_and_dying_workers_are_recorded_and_the_search_goes_on(
    world: Path, tmp_path: Path
) -> None:
    study = Study(
        tiny_config(world, 6, name="troubled", max_failures=1, test_seeds=0),
        folder=tmp_path,
        make_evaluator=search_world.by_value(_failing_evaluator),
    )
    entries = study.run().trials
    assert [str(one.state) for one in entries] == [
        "completed",
        "completed",  # its worker died once
        "failed",  # its worker died every time
        "failed",
        "failed",
        "completed",
    ]
    assert entries[2].failure is not None
    assert entries[2].failure.startswith("Its worker died 2 times.")
    assert entries[3].failure is not None
    assert entries[3].failure.startswith("TypeError: an editor with a bug (test_search_study.py:")
    assert entries[4].failure is not None
    assert "changed" in entries[4].failure


def _diverging_evaluator(config: StudyConfig) -> Evaluator:
    def diverge(
        evaluator: Evaluator, editor: Editor, *, seed: int, prunes: PruneRule | None
    ) -> TrialResult:
        record = TrialRecord.failed(
            editor=editor.name(),
            hyperparameters=editor.model_dump(mode="json"),
            split=SplitName.VAL,
            seed=seed,
            why="The loss is NaN.",
        )
        return TrialResult(record, {})

    worker.run_editor = diverge
    return make_evaluator(config)


def test_a_study_of_failures_says_why(world: Path, tmp_path: Path, shared_ray: str) -> None:
    study = Study(
        tiny_config(world, 2, address=shared_ray),
        folder=tmp_path,
        make_evaluator=search_world.by_value(_diverging_evaluator),
    )
    with pytest.raises(StudyFailed, match="All 2 trials of 'tiny' failed:\n  2 × The loss is NaN"):
        study.run()
    entries = open_study(study.folder.root).trials
    assert all(entry.record and entry.failure for entry in entries)


def test_a_study_that_cannot_run_says_so_and_can_be_continued(
    world: Path, tmp_path: Path, shared_ray: str
) -> None:
    text = tmp_path / "general.txt"
    text.write_text("too short\n")
    config = tiny_config(world, 2, general=str(text), address=shared_ray, test_seeds=0)
    study = Study(config, folder=tmp_path)
    with pytest.raises(ConfigError, match="No trial of this study can run"):
        study.run()
    text.write_text((world / "general.txt").read_text())
    assert len(study.run().trials) == 2


def test_ctrl_c_stops_and_the_study_goes_on_later(
    world: Path, tmp_path: Path, shared_ray: str
) -> None:
    config = tiny_config(world, 4, address=shared_ray, test_seeds=0)
    study = Study(config, folder=tmp_path)

    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="continues there"):
        study.run(stop)
    assert [entry.number for entry in study.run().trials] == list(range(4))


def test_nothing_is_printed(world: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, search_world.__file__, str(world), str(tmp_path), "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == ""


# Several processes


def test_a_second_driver_is_refused(world: Path, tmp_path: Path, shared_ray: str) -> None:
    refused: list[str] = []

    def try_again(progress: Progress) -> None:
        if progress.phase is StudyPhase.SEARCH and not refused:
            done = subprocess.run(
                [sys.executable, search_world.__file__, str(world), str(tmp_path), "2"],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            refused.append(done.stderr)

    config = tiny_config(world, 2, address=shared_ray, test_seeds=0)
    Study(config, folder=tmp_path).run(try_again)
    assert f"is being run by process {os.getpid()}" in refused[0]


def test_a_worker_killed_in_mid_trial_is_replaced(world: Path, tmp_path: Path) -> None:
    victims: list[int] = []

    def hunt(progress: Progress) -> None:
        if progress.done == 1 and progress.running and not victims:
            victims.extend(_trial_actors())
            for pid in victims:
                os.kill(pid, signal.SIGKILL)

    result = Study(tiny_config(world, 4, test_seeds=0), folder=tmp_path).run(hunt)
    assert victims
    assert [str(entry.state) for entry in result.trials] == ["completed"] * 4


def _trial_actors() -> list[int]:
    """Return the workers among our own descendants."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        if title.startswith("ray::") and "TrialActor" in title and _is_ours(stat):
            found.append(int(folder.name))
    return found


def _is_ours(stat: str) -> bool:
    parent = int(stat.rsplit(")", 1)[1].split()[1])
    while parent > 1:
        if parent == os.getpid():
            return True
        try:
            stat = Path(f"/proc/{parent}/stat").read_text()
        except OSError:
            return False
        parent = int(stat.rsplit(")", 1)[1].split()[1])
    return False
