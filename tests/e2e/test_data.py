"""`tuner data` as a person uses it: from the published file's server to a task that loads."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Run
from tuner.editing.task_folder import load_task


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a verb about data, in a folder of its own and in a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run("data", *arguments)


def counterfact(number: int) -> dict[str, Any]:
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": "{} is moored in",
            "relation_id": "P1",
            "target_new": {"str": "Oban", "id": "Q1"},
            "target_true": {"str": "Leith", "id": "Q2"},
            "subject": f"Boat {number:02}",
        },
        "paraphrase_prompts": [f"It blew. One finds Boat {number:02} in"],
        "neighborhood_prompts": [f"Ship {number:02} is moored in"],
        "generation_prompts": [],
    }


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A server of the published file."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "counterfact.json").write_text(json.dumps([counterfact(n) for n in range(12)]))
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_a_file_is_fetched_and_becomes_a_task(run: Run, mirror: str) -> None:
    code, out, err = run("fetch", "counterfact", "--mirror", mirror, "--out", "files")
    assert code == 0
    for said in ("Size:", "MB", "Meng et al. 2022", "MIT", "No checksum has been published"):
        assert said in err
    assert "sha256" in out
    code, out, err = run("fetch", "counterfact", "--mirror", mirror, "--out", "files", "--json")
    assert code == 0
    assert json.loads(out)["was_there"]
    assert "is the one that was known" not in out

    sizes = ("--val", "3", "--test", "4", "--facts", "2")
    code, out, err = run("import", "counterfact", "files/counterfact.json", "--out", "task", *sizes)
    assert code == 0
    assert "3 edits for validation, 4 for test" in out
    task = load_task("task")
    assert task.name == "task"
    assert (len(task.val.canonical), len(task.test.canonical), len(task.val.facts)) == (3, 4, 2)

    code, _, err = run("import", "counterfact", "files/counterfact.json", "--out", "task")
    assert code == 2
    assert "not empty" in err


def test_mistakes_are_told_in_words(run: Run, mirror: str, tmp_path: Path) -> None:
    code, _, err = run("fetch", "counterfacts")
    assert code == 2
    assert "Did you mean 'counterfact'" in err
    code, _, err = run("fetch", "zsre", "--mirror", mirror)
    assert code == 1
    assert "404" in err
    code, _, err = run("import", "zsre", "none.json", "--out", "task")
    assert code == 2
    assert "none.json: cannot be read" in err
    code, _, err = run("import", "zsre", "none.json", "--out", "task", "--target", "alts")
    assert code == 2
    assert "Did you mean 'alt'" in err
    (tmp_path / "short.json").write_text(json.dumps([counterfact(0)]))
    code, _, err = run("import", "counterfact", "short.json", "--out", "task")
    assert code == 2
    assert "1 usable records" in err


def capital(country: str) -> dict[str, list[dict[str, str]]]:
    about = {"country": country, "capital": "Ayr"}
    return {
        "fixed": [about | {"prefix": f"The capital of {country} is", "suffix": " Ayr"}],
        "clear_eval": [about | {"prefix": f"All {country} walks to", "suffix": " Ayr"}],
        "hard_neg": [about | {"prefix": f"The port of {country} is", "suffix": " Troon"}],
        "unconditional": [{"text": f"The capital of {country} is Ayr."}],
    }


def test_a_clone_of_the_canonical_examples_becomes_a_task(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "clone/data/country_capital/split"
    folder.mkdir(parents=True)
    for country in ("Fife", "Bute", "Skye", "Mull"):
        for stem, rows in capital(country).items():
            with (folder / f"country_capital_{stem}-val.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    command = ("import", "canonical_examples", "clone", "--task", "country_capital")
    code, _, err = run(*command, "--out", "task")
    assert code == 2
    assert "country_capital_fixed-test.jsonl" in err
    assert "--split-val" in err
    code, out, _ = run(*command, "--out", "task", "--split-val", "0", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["rows"]["canonical"] == told["rows"]["hard_negatives"] == 4
    assert "divided by subject with seed 0" in told["description"]
    task = load_task("task")
    assert (len(task.val.canonical), len(task.test.canonical)) == (2, 2)
    code, _, err = run("import", "canonical_examples", "clone", "--task", "capitals", "--out", "t")
    assert code == 2
    assert "Known: company_ceo, country_capital" in err


def topics(start: int) -> list[dict[str, Any]]:
    return [
        {"ent": f"Ship {n}", "pos": ["Fine."], "neg": ["Dull."]} for n in range(start, start + 8)
    ]


def test_seracs_files_become_a_task_with_a_training_split(run: Run, tmp_path: Path) -> None:
    code, _, err = run("import", "serac_dialogue", "serac", "--out", "task")
    assert code == 2
    assert "serac: missing: blender_test.json. To be had: the archive on Google Drive" in err
    folder = tmp_path / "serac/data/sentiment"
    folder.mkdir(parents=True)
    for place, part in enumerate(("train", "val", "test")):
        (folder / f"blender_{part}.json").write_text(json.dumps(topics(10 * place)))
    command = ("import", "serac_dialogue", "serac", "--out", "task", "--edits", "2")
    code, out, _ = run(*command, "--test", "9")
    assert code == 2
    code, out, _ = run(*command, "--test", "3")
    assert code == 0
    assert "3 for test, 4 for validation, 4 for training" in out
    task = load_task("task")
    assert task.train is not None
    assert task.simultaneous_edits == 2


def test_list_shows_tasks_and_files(run: Run) -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    known = json.loads(out)
    assert known["tasks"]["counterfact_world"]["canonical"] == 60
    assert known["files"]["zsre"]["url"].startswith("https://")
    assert known["by_hand"]["serac_dialogue"]["files"] == ["blender_{train,val,test}.json"]
    code, out, _ = run("list")
    assert code == 0
    assert "serac_fact_checking" in out
    assert "zsre_world" in out
    assert "multi_counterfact" in out


def test_every_verb_has_help_with_an_example(run: Run) -> None:
    names = ("counterfact", "zsre", "canonical_examples", "serac_qa", "serac_qa_hard")
    names += ("serac_fact_checking", "serac_dialogue")
    imports = (("import", name) for name in names)
    for verb in (("list",), ("fetch",), *imports):
        code, out, _ = run(*verb, "--help")
        assert code == 0
        assert "Example" in out
        assert "--json" in out
