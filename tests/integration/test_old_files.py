"""What an earlier version wrote is read, continued and exported, from another place."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.clone import ROOT
from tests.support.command_line import Run
from tuner.search import open_study
from tuner.trial.records import TrialState


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files, in which we are."""
    here = shutil.copytree(ROOT / "tests/data/written_by_the_first_version", tmp_path / "here")
    monkeypatch.chdir(here)
    return here


def test_an_old_study_is_shown_and_goes_on(here: Path, run: Run) -> None:
    old = open_study(here / "studies/tiny").record
    assert [entry.state for entry in old.entries] == [TrialState.COMPLETED] * 2
    code, out, err = run("best", "tiny", "--folder", "studies", "--json")
    assert code == 0, err
    (best,) = json.loads(out)
    assert best["winner"]["trial"] == 1
    assert best["winner"]["hyperparameters"]["rank"] == 2

    code, out, err = run(
        "search", "--model", "world/model", "--task", "world/task", "--space", "world/space.yaml",
        "--general", "world/general.txt", "--device", "cpu", "--workers", "1", "--trials", "3",
        "--epsilon", "1e-2", "--test-seeds", "1", "--name", "tiny", "--folder", "studies",
        "--no-track", "--json",
    )  # fmt: skip
    assert code == 0, err
    entries = open_study(here / "studies/tiny").record.entries
    assert [entry.number for entry in entries] == [0, 1, 2]
    for before, after in zip(old.entries, entries, strict=False):
        assert (after.parameters, after.record) == (before.parameters, before.record)


def test_an_old_winner_is_exported(here: Path, run: Run) -> None:
    for source in (["lora"], ["tiny", "--folder", "studies"]):
        name, *options = source
        code, _, err = run("export", name, f"{name}-adapter", "--format", "peft", *options)
        assert code == 0, err
        assert load_file(here / f"{name}-adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("bundle", ["lora", "memory"])
def test_an_old_bundle_is_judged_as_it_was(bundle: str, here: Path, run: Run) -> None:
    manifest = json.loads((here / bundle / "delta.json").read_text())
    expected = next(
        answer["scores"]
        for answer in manifest["answers"]
        if (answer["epsilon"], answer["rule"]) == (manifest["epsilon"], manifest["rule"])
    )
    code, out, err = run(
        "evaluate", bundle, "--task", "world/task", "--general", "world/general.txt",
        "--model", "world/model", "--split", "val", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["edited"]["success"] == pytest.approx(expected["success"]), found
