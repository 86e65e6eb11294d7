"""What a study names from outside the package, used through the command line."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import (
    authentication_env_guard,
    reset_auth_token_state,
    set_auth_mode,
    set_env_auth_token,
)

from tests.support.command_line import Run
from tests.support.ray_head import RayHead
from tests.support.search_world import make_world
from tuner.search import open_study

PACKAGE = '''\
from pathlib import Path

from optuna.samplers import RandomSampler
from pydantic import Field

from tuner.editing.editor import Editor
from tuner.editors.lora import Lora
from tuner.evaluation.metrics import Metric
from tuner.search.trackers import StudyTracker
from tuner.search.samplers import Sampler
from tuner.search.schedulers import Scheduler


class Plain(Editor):
    """A LoRA of which one number is free."""

    learning_rate: float = Field(gt=0, description="Learning rate.")

    @property
    def steps_per_batch(self):
        return 2

    def steps(self, model, examples, aux, *, seed):
        lora = Lora(rank=2, epochs=2, batch_size=2, learning_rate=self.learning_rate)
        yield from lora.steps(model, examples, aux, seed=seed)


class Echo(Metric):
    """How often the model repeats the last word of a prompt, which is worse."""

    label = "echo of the prompt"
    lower_is_better = True

    def __init__(self, model, split, criterion):
        assert model.unedited
        self.prompts = [row.prompt for row in split.ood.rows]

    @classmethod
    def is_measured_on(cls, split, criterion):
        return len(split.ood.rows) > 0

    def measure(self, readings):
        model, echoes = readings.model, 0
        for prompt in self.prompts:
            said = model.complete(prompt, max_new_tokens=2)
            echoes += prompt.split()[-1] in said
        return echoes / len(self.prompts)


class Length(Metric):
    """How many words the model says, which is only reported."""

    label = "words said"

    @classmethod
    def is_measured_on(cls, split, criterion):
        return True

    def measure(self, readings):
        return float(len(readings.model.complete("The car is", max_new_tokens=4).split()))


class OneEpoch(Scheduler):
    """Ends every other trial after its first epoch."""

    def prunes(self, trial, others):
        return trial.number % 2 == 1


class Halton(Sampler):
    """Draws at random, and leaves a trace."""

    @classmethod
    def make(cls, seed):
        with Path("asked").open("a") as file:
            file.write(f"{seed}\\n")
        return RandomSampler(seed=seed)


class Diary(StudyTracker):
    """Writes a line for each change."""

    def __init__(self, summary, place):
        self.path = place.folder / "diary.txt"
        self.note(f"follows {summary.name}")

    def note(self, line):
        with self.path.open("a") as file:
            file.write(f"{line}\\n")

    def trial_changed(self, entry):
        self.note(f"{entry.number} {entry.state}")

    def study_finished(self, result):
        self.note(f"{len(result.winners)} winners")

    def close(self):
        self.note("closed")

    def where(self):
        return (f"Diary: {self.path}",)


class Broken(Diary):
    """Fails, which hurts nobody."""

    def trial_changed(self, entry):
        raise RuntimeError("no paper left")
'''

STUDY = """\
name: tiny
task: world/task
model: ./world/model
general: world/general.txt
space: space.yaml
device: cpu
trials: 2
workers: 1
test_seeds: 0
budget: {epsilons: [1e-2]}
sampler: outside:Halton
scheduler: outside:OneEpoch
metrics: outside:Length
tracking: ["outside:Diary", "outside:Broken"]
constraints:
  - {metric: "outside:Echo", ceiling: 2.0}
"""


SPACE = """\
editor: outside:Plain
search:
  learning_rate: {type: float, low: 1.0e-2, high: 1.0e-1, log: true}
"""


def test_a_study_uses_an_editor_metrics_a_sampler_a_scheduler_and_trackers_from_outside(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(tmp_path / "world")
    (tmp_path / "outside.py").write_text(PACKAGE)
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "study.yaml").write_text(STUDY)

    def run_there(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tuner", *arguments],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    done = run_there("check", "study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_there("search", "study.yaml", "--folder", "studies", "--json")
    assert done.returncode == 0, done.stderr
    assert "no paper left" in done.stderr
    record = open_study(tmp_path / "studies/tiny").record
    assert record.summary.sampler == "outside:Halton"
    assert len((tmp_path / "asked").read_text().split()) >= 2
    assert [str(entry.state) for entry in record.entries] == ["completed", "pruned"]
    assert record.summary.scheduler == "outside:OneEpoch"
    assert record.summary.metrics == ("outside:Length",)
    for entry in record.entries:
        assert entry.record is not None
        assert len(entry.record.epochs) == (1 if entry.number == 1 else 2)
        for answer in entry.record.answers:
            assert answer.scores.further["outside:Length"] >= 1
            assert 0 <= answer.scores.further["outside:Echo"] <= 1
            assert answer.violations["outside:Echo.ceiling"] <= 0
    (winner,) = record.winners
    assert winner.trial in (0, 1)
    diary = (tmp_path / "studies/diary.txt").read_text().splitlines()
    assert "follows tiny" in diary
    assert {"0 completed", "1 pruned", "1 winners", "closed"} <= set(diary)
    assert not (tmp_path / "studies/mlflow.db").exists()
    # What was made can be shown and exported where the module is not.
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert importlib.util.find_spec("outside") is None
    # As JSON: eighty columns break a name within a heading.
    compared = ["compare", "tiny", "--epsilon", "1e-2", "--json"]
    for verb in (["status", "tiny"], ["best", "tiny"], compared, ["export", "tiny", "adapter"]):
        code, out, err = run(*verb, "--folder", "../studies")
        assert code == 0, err
        if verb[0] != "export":
            assert "outside:Length" in "".join(out.split()), out
    assert "words said" in (tmp_path / "studies/tiny/report.html").read_text()
    assert (away / "adapter" / "adapter_config.json").is_file()

    shown = run_there("evaluate", "tiny", "--folder", "studies", "--task", "world/task",
                "--general", "world/general.txt", "--json")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert 0 <= json.loads(shown.stdout)["edited"]["success"] <= 1
    bad = (tmp_path / "study.yaml").read_text().replace("outside:Halton", "outside:Diary")
    (tmp_path / "bad.yaml").write_text(bad)
    done = run_there("check", "bad.yaml")
    assert done.returncode == 2
    assert "is not a class of samplers" in " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head whose token this process knows, and forgets again."""
    head = RayHead(tmp_path_factory.mktemp("studies"))
    with authentication_env_guard():
        set_auth_mode("token")
        set_env_auth_token(head.token)
        reset_auth_token_state()
        try:
            head.start()
            yield head
        finally:
            head.kill()
    reset_auth_token_state()


def test_what_a_study_names_from_outside_goes_with_it_to_a_cluster(
    tmp_path: Path, head: RayHead, run: Run
) -> None:
    make_world(tmp_path / "world")
    # Called otherwise than in the other test, whose module a process may have imported.
    (tmp_path / "elsewhere.py").write_text(PACKAGE)
    (tmp_path / "space.yaml").write_text(SPACE.replace("outside:", "elsewhere:"))
    study = STUDY.replace("outside:", "elsewhere:")
    study = study.replace("./world/model", str(tmp_path / "world" / "model"))
    study = study.replace(', "elsewhere:Broken"', "")
    (tmp_path / "study.yaml").write_text(study)
    place = ("--ray-address", head.address)
    code, _, err = run("launch", str(tmp_path / "study.yaml"), *place)
    assert code == 0, err
    record = open_study(head.studies / "tiny").record
    # The workers had the editor, the metrics and the scheduler, the driver the rest.
    assert [str(entry.state) for entry in record.entries] == ["completed", "pruned"]
    for entry in record.entries:
        assert entry.record is not None
        for answer in entry.record.answers:
            assert {"elsewhere:Echo", "elsewhere:Length"} <= answer.scores.further.keys()
    diary = (head.studies / "diary.txt").read_text().splitlines()
    assert {"follows tiny", "0 completed", "1 pruned", "closed"} <= set(diary)
