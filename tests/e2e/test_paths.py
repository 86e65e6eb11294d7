"""Every verb takes relative paths, from any folder, with blanks and letters beyond ASCII."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Run
from tests.support.search_world import make_world

WORLD = "../Wörter und mehr"
EDIT = ["--editor", "lora", "--set", "learning_rate=3e-2", "--set", "epochs=3"]
EDIT += ["--set", "batch_size=2"]
GIVEN = ["--task", f"{WORLD}/task", "--model", f"{WORLD}/model", "--general", f"{WORLD}/text.txt"]
STUDY = """\
name: meine
task: task
model: ./model
general: text.txt
space: space.yaml
device: cpu
trials: 2
workers: 1
test_seeds: 0
budget: {epsilons: [1e-2]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the world in `Wörter und mehr`, and a study made in `hier arbeiten`."""
    place = tmp_path_factory.mktemp("place")
    world = make_world(place / "Wörter und mehr")
    (world / "general.txt").rename(world / "text.txt")
    for split in ("val", "test"):
        edits = len((world / "task" / split / "canonical.jsonl").read_text().splitlines())
        for part in ("canonical", "ood", "hard_negatives"):
            path = world / "task" / split / f"{part}.jsonl"
            rows = (json.loads(row) for row in path.read_text().splitlines())
            named = (row | {"record": str(number % edits)} for number, row in enumerate(rows))
            path.write_text("".join(f"{json.dumps(row)}\n" for row in named))
    (world / "study.yaml").write_text(STUDY)
    for name in ("hier arbeiten", "anderswo"):
        (place / name).mkdir()
    return place


@pytest.fixture(scope="module")
def searched(place: Path) -> dict[str, Any]:
    """What a search said that was given everything by relative paths."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tuner", "search", *GIVEN, "--space", f"{WORLD}/space.yaml",
            "--trials", "2", "--workers", "1", "--device", "cpu", "--test-seeds", "0",
            "--budget", "1e-2", "--name", "meine", "--folder", "meine Studien?", "--json",
        ],
        cwd=place / "hier arbeiten",
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `hier arbeiten`, in which we are."""
    monkeypatch.chdir(place / "hier arbeiten")
    return place / "hier arbeiten"


def test_a_search_runs_on_relative_paths_and_keeps_its_runs_where_it_should(
    searched: dict[str, Any], place: Path
) -> None:
    result = searched["result"]
    assert [entry["state"] for entry in result["entries"]] == ["completed"] * 2
    assert result["summary"]["model"] == f"{WORLD}/model"  # as it was spelled
    studies = place / "hier arbeiten" / "meine Studien?"
    assert Path(result["summary"]["folder"]) == studies / "meine"
    assert (studies / "mlflow.db").is_file()
    assert (studies / "mlartifacts").is_dir()
    assert [path.name for path in (place / "hier arbeiten").iterdir()] == [studies.name]


def test_a_study_goes_on_from_elsewhere_and_by_other_names_of_the_same_files(
    searched: dict[str, Any], place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "anderswo")
    study = [f"{WORLD}/study.yaml", "--folder", "../hier arbeiten/meine Studien?", "--no-track"]
    code, out, err = run("search", *study, "--json")
    assert code == 0, err
    assert json.loads(out)["result"]["winners"] == searched["result"]["winners"]
    shutil.copytree(place / "Wörter und mehr", place / "kopie")
    copied = ["--model", "../kopie/model", "--task", "../kopie/task"]
    copied += ["--space", "../kopie/space.yaml", "--general", "../kopie/text.txt"]
    code, out, err = run("search", *study, *copied, "--json")
    assert code == 0, err
    assert json.loads(out)["result"]["winners"] == searched["result"]["winners"]
    words = "".join(f"The boat is {n} . My cup was {n} .\n" for n in range(3000))
    (place / "kopie" / "anders.txt").write_text(words)
    code, _, err = run("search", *study, *copied, "--general", "../kopie/anders.txt")
    assert code == 2
    assert "began with other general text" in " ".join(err.split())
    with (place / "kopie" / "task" / "val" / "ood.jsonl").open("a") as file:
        file.write('\n{"prompt": "The sky is", "target": " blue"}\n')
    code, _, err = run("search", *study, *copied)
    assert code == 2
    assert "task content: was" in err


def test_studies_are_shown_from_a_relative_folder(
    searched: dict[str, Any], here: Path, run: Run
) -> None:
    folder = ["--folder", "../hier arbeiten/meine Studien?"]
    for verb in (
        ["status"],
        ["status", "meine"],
        ["compare", "meine", "--epsilon", "1e-2"],
        ["best", "meine"],
        ["stop", "meine"],
        ["repair", "meine"],
    ):
        code, _, err = run(*verb, *folder)
        assert (code, err) == (0, "")


def test_a_winner_is_judged_and_exported_from_elsewhere(
    searched: dict[str, Any], place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "anderswo")
    study = ["meine", "--folder", "../hier arbeiten/meine Studien?"]
    text = ["--general", f"{WORLD}/text.txt"]
    # The bundle knows where its task lies.
    code, _, err = run("evaluate", *study, *text)
    assert code == 0, err
    code, _, err = run("evaluate", *study, *text, "--task", f"{WORLD}/task")
    assert code == 0, err
    code, out, err = run("certify", *study, *text, "--json")
    assert code == (0 if json.loads(out)["verdict"] == "within" else 1), err
    for format in ("peft", "merged", "delta"):
        code, _, err = run("export", *study, f"für {format}", "--format", format)
        assert code == 0, err
        assert (place / "anderswo" / f"für {format}").is_dir()
    settings = json.loads(Path("für peft", "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(place / "Wörter und mehr" / "model")


def test_an_edit_is_made_and_used_elsewhere_and_says_where_it_looked_for_its_base(
    place: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("edit", *GIVEN, *EDIT, "--budget", "0.5", "--out", "meine Edits/eins")
    assert code == 0, err
    monkeypatch.chdir(place / "anderswo")
    bundle = "../hier arbeiten/meine Edits/eins"
    judge = [*GIVEN[:2], *GIVEN[4:]]
    code, _, err = run("evaluate", bundle, *judge)
    assert code == 0, err
    code, _, err = run("memory", bundle)
    assert code == 2
    assert "keeps no edits as text" in err
    manifest = Path(bundle, "delta.json")
    moved = json.loads(manifest.read_text()) | {"base": "../weg/model"}
    manifest.write_text(json.dumps(moved))
    code, _, err = run("evaluate", bundle, *judge)
    assert code == 2
    assert f"was the folder {place / 'weg' / 'model'}, which is not there" in " ".join(err.split())
    code, _, err = run("evaluate", bundle, *judge, *GIVEN[2:4])
    assert code == 0, err


def test_sequences_and_scaling_runs_are_written_to_relative_folders(here: Path, run: Run) -> None:
    stream = ["stream", *GIVEN, *EDIT, "--edits", "2", "--every", "2", "--out", "ein Stück"]
    code, _, err = run(*stream)
    assert code == 0, err
    assert "`tuner stream` is called `tuner sequential` now." in err
    file = here / "ein Stück" / "stream.jsonl"
    begun = file.read_text()
    # Files from before bore the base as it was spelled.
    file.write_text(begun.replace(str(here.parent / WORLD[3:] / "model"), "./m"))
    assert '"base":"./m"' in file.read_text()
    code, _, err = run(*stream)
    assert code == 0, err
    assert file.read_text().splitlines()[1:] == begun.splitlines()[1:]
    counts = ["--edits", "2", "--draws", "1", "--epsilon", "0.5"]
    code, _, err = run("scaling", *GIVEN, *EDIT, *counts, "--out", "./viele")
    assert code == 0, err
    assert (here / "viele" / "table.csv").is_file()


def test_files_and_names_are_checked_as_they_are_spelled(here: Path, run: Run) -> None:
    files = [f"{WORLD}/{name}" for name in ("study.yaml", "space.yaml", "task", "task/task.yaml")]
    code, out, err = run("check", *files, "country_capital", "lora")
    assert code == 0, out + err
    assert f"{WORLD}/study.yaml: fine" in out
    code, out, _ = run("check", "country_capitol")
    assert code == 2
    assert "Did you mean 'country_capital'" in " ".join(out.split())
    code, out, _ = run("check", f"{WORLD}/absent.yaml")
    assert code == 2
    assert f"{WORLD}/absent.yaml: cannot be read" in " ".join(out.split())


def test_a_study_is_packed_with_its_relative_files_or_refused_in_words(
    place: Path, here: Path, run: Run
) -> None:
    there = ["--ray-address", "http://127.0.0.1:9", "--dry-run", "--json"]
    code, _, err = run("launch", f"{WORLD}/study.yaml", *there)
    assert code == 2
    assert "model: ./model must be a name, or an absolute path on the cluster" in " ".join(
        err.split()
    )
    text = STUDY.replace("model: ./model", "model: /disk/model")
    (place / "Wörter und mehr" / "there.yaml").write_text(text)
    code, out, err = run("launch", f"{WORLD}/there.yaml", *there)
    assert code == 0, err
    assert "general/text.txt" in out
    assert "task/task/task.yaml" in out
    code, _, err = run("launch", f"{WORLD}/there.yaml", "--cluster", "local", "--dry-run")
    assert code == 2
    assert "must be a name, or lie on a disk of the cluster" in " ".join(err.split())


def test_data_is_imported_into_a_relative_folder_and_used_from_there(
    place: Path, here: Path, run: Run
) -> None:
    facts = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "The colour of {} is",
                "relation_id": "P1",
                "subject": f"thing {number}",
                "target_new": {"str": "blue"},
                "target_true": {"str": "red"},
            },
            "paraphrase_prompts": [f"Seen by all, thing {number} is"],
            "neighborhood_prompts": [f"The colour of stone {number} is"],
            "generation_prompts": [f"thing {number} looks"],
        }
        for number in range(40)
    ]
    (place / "Wörter und mehr" / "facts.json").write_text(json.dumps(facts))
    code, _, err = run(
        "data", "import", "counterfact", f"{WORLD}/facts.json", "--out", "meine Fakten",
        "--val", "4", "--test", "4", "--facts", "0",
    )  # fmt: skip
    assert code == 0, err
    assert "tuner search --task './meine Fakten'" in " ".join(err.split())
    code, out, err = run("check", "meine Fakten")
    assert code == 0, out + err
