"""The command line as a person uses it: from a study to an exported delta, and through mistakes."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.clone import ROOT
from tests.support.command_line import Run
from tests.support.search_world import make_world
from tuner.editing.model import load_model
from tuner.world.text import general_documents


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little general text of the built-in world, so that trials take seconds."""
    path = tmp_path_factory.mktemp("text") / "general.jsonl"
    documents = itertools.islice(general_documents("search"), 2000)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, general: Path
) -> tuple[Path, dict[str, Any]]:
    """A folder in which a small study has run, by a process of its own."""
    place = tmp_path_factory.mktemp("workplace")
    # Eight countries of the thirty: most of a trial is asking after each of them in eight ways.
    shutil.copytree("datasets/country_capital", place / "task")
    for split in ("val", "test"):
        for part, rows in (("canonical", 8), ("ood", 64), ("hard_negatives", 24), ("related", 16)):
            path = place / "task" / split / f"{part}.jsonl"
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    (place / "study.yaml").write_text(
        f"name: small\ntask: task\nspace: space.yaml\ngeneral: {general}\n"
        "trials: 3\nworkers: 1\nconfirm_top: 1\ntest_seeds: 1\n"
        "budget: {epsilons: [1e-2, 1e-3]}\n"
    )
    (place / "space.yaml").write_text(
        "editor: lora\nfixed: {epochs: 3, batch_size: 10, rank: 8, width: 0.9}\n"
        "search:\n  learning_rate: {type: float, low: 2e-3, high: 1e-2, log: true}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "search", "study.yaml", "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"COLUMNS": "60"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return place, json.loads(done.stdout)


def test_search_selects_certifies_and_retests(workplace: tuple[Path, dict[str, Any]]) -> None:
    place, printed = workplace
    result = printed["result"]
    assert [entry["state"] for entry in result["entries"]] == ["completed"] * 3
    assert {winner["epsilon"] for winner in result["winners"]} <= {1e-2, 1e-3}
    winner = result["winners"][0]
    assert winner["validation"]["gain"] > 0
    assert winner["certificate"]["corpus_hash"]
    assert len(winner["test"]) == 1
    assert Path(printed["report"]).read_text().startswith("<!")
    assert (place / "tuner-studies" / "mlflow.db").exists()


def test_a_finished_study_is_shown_and_exported(
    workplace: tuple[Path, dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, printed = workplace
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "60")
    epsilon = str(printed["result"]["winners"][0]["epsilon"])
    for verb in (["status"], ["status", "small"], ["best", "small"], ["stop", "small"]):
        code, out, err = run(*verb)
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 60 or "bundle" in out
    code, out, _ = run("compare", "small", "--epsilon", epsilon, "--json")
    assert code == 0
    assert [row["gain"] for row in json.loads(out)] == sorted(
        (row["gain"] for row in json.loads(out)), reverse=True
    )
    assert run("status", "small", "--sync")[0] == 0

    assert run("export", "small", "adapter", "--epsilon", epsilon)[0] == 0
    assert run("export", "small", "merged", "--epsilon", epsilon, "--format", "merged")[0] == 0
    assert run("export", "small", "delta", "--epsilon", epsilon, "--format", "delta")[0] == 0
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        base = load_model("builtin:neox").network
        adapted = PeftModel.from_pretrained(base, "adapter")(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
        torch.testing.assert_close(adapted, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)

    code, out, _ = run("evaluate", "delta", "--general", "general.jsonl", "--json")
    assert code == 2  # there is no such file here
    code, out, _ = run("best", "small", "--json")
    assert Path(json.loads(out)[0]["bundle"]).is_dir()


def test_the_same_command_again_does_nothing_twice(
    workplace: tuple[Path, dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, printed = workplace
    monkeypatch.chdir(place)
    code, out, _ = run("search", "study.yaml", "--no-track", "--json")
    assert code == 0
    assert json.loads(out)["result"]["winners"] == printed["result"]["winners"]
    code, _, err = run("search", "study.yaml", "--seed", "5")
    assert code == 2
    assert "seed" in err


def test_a_single_edit_is_made_judged_and_certified(
    run: Run, tmp_path: Path, general: Path
) -> None:
    out_folder = str(tmp_path / "edit")
    settings = ["--set", "learning_rate=5e-3", "--set", "epochs=1", "--set", "batch_size=10"]
    text = ["--general", str(general)]
    code, out, err = run(
        "edit", "--task", "country_capital", "--editor", "lora", *settings, *text,
        "--budget", "0.05", "--out", out_folder, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["record"]["outcome"] == "completed"
    code, out, _ = run("evaluate", out_folder, *text, "--split", "val", "--json")
    assert code == 0
    judged = json.loads(out)
    assert judged["verdict"] in ("within", "unresolved", "over")
    assert judged["edited"]["success"] == pytest.approx(judged["base"]["success"] + judged["gain"])
    code, out, _ = run("certify", out_folder, *text, "--json")
    assert code == (0 if json.loads(out)["verdict"] == "within" else 1)
    manifest = json.loads((tmp_path / "edit" / "delta.json").read_text())
    assert manifest["certificate"]["verdict"] == json.loads(out)["verdict"]


def test_edits_say_whether_the_task_s_constraints_are_kept(run: Run, tmp_path: Path) -> None:
    world, bundle = make_world(tmp_path / "world"), str(tmp_path / "edit")
    with (world / "task" / "task.yaml").open("a") as card:
        card.write("constraints: [{metric: related_loss, rise: 0.01}]\n")
    given = ["--task", str(world / "task"), "--general", str(world / "general.txt")]
    settings = ["--set", "learning_rate=3e-2", "--set", "epochs=4", "--set", "batch_size=2"]
    code, out, err = run(
        "edit", *given, "--model", str(world / "model"), "--editor", "lora", *settings,
        "--budget", "1e-2", "--out", bundle,
    )  # fmt: skip
    assert code == 0, err
    words = "Constraint related_loss at most 0.01 above the base model's: "
    assert f"{words}kept by all" in out
    code, out, _ = run("evaluate", bundle, *given, "--split", "val")
    assert code == 0
    assert f"{words}kept" in out
    code, out, _ = run("evaluate", bundle, *given, "--split", "val", "--json")
    assert json.loads(out)["violations"]["related_loss.rise"] <= 0


def test_some_edits_of_a_pool_are_made_and_judged_by_drawdown_and_scope(
    run: Run, tmp_path: Path
) -> None:
    world, bundle = make_world(tmp_path / "world"), str(tmp_path / "edit")
    card = world / "task" / "task.yaml"
    lines = [line for line in card.read_text().splitlines() if not line.startswith("threshold")]
    card.write_text("\n".join([*lines, "success: sequence", "simultaneous_edits: 3", ""]))
    for split in ("val", "test"):
        folder = world / "task" / split
        edits = len((folder / "canonical.jsonl").read_text().splitlines())
        for part in ("canonical", "ood", "hard_negatives"):
            rows = (folder / f"{part}.jsonl").read_text().splitlines()
            named = (json.loads(row) | {"record": str(n % edits)} for n, row in enumerate(rows))
            (folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in named))
        rows_per_edit = len((folder / "ood.jsonl").read_text().splitlines()) // edits
    given = ["--task", str(world / "task"), "--general", str(world / "general.txt")]
    asked = ["edit", *given, "--model", str(world / "model"), "--editor", "look_up"]
    code, out, err = run(*asked, "--budget", "0.9", "--edits", "2", "--out", bundle)
    assert code == 0, err
    assert "drawdown" in out
    assert "Which prompts the memory takes for its edits'" in out
    assert json.loads((tmp_path / "edit" / "delta.json").read_text())["edits"] == 2
    code, out, err = run("evaluate", bundle, *given)
    assert code == 0, err
    for words in ("drawdown", "scope, precision", "scope, recall by the right edit", "scope, AUC"):
        assert words in out
    for asked_for, made in (([], 2), (["--edits", "2"], 2), (["--edits", "3"], 3)):
        code, out, _ = run("evaluate", bundle, *given, *asked_for, "--json")
        assert code == 0
        found = json.loads(out)
        assert len(found["edited"]["row_success"]) == rows_per_edit * made
        assert found["base"]["scope_recall"] is None
        assert found["base"]["drawdown"] == 0.0
    code, _, err = run(*asked, "--edits", "99", "--out", str(tmp_path / "other"))
    assert code == 2
    assert "99 edits at once need as many canonical rows" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search"], "A study needs a task"),
        (["search", "--task", "country_capitol"], "Did you mean 'country_capital'"),
        (["search", "--task", "country_capital", "--space", "lorra"], "Did you mean 'lora'"),
        (["search", "--task", "country_capital", "--trials", "0"], "trials"),
        (["search", "--task", "country_capital", "--budget", "7"], "epsilon < 1"),
        (["search", "absent.yaml"], "cannot be read"),
        (["search", "--task", "temporal", "--folder", "/dev/null/x"], "cannot be kept"),
        (["search", "--task", "temporal", "--tracking-uri", "ftp://x"], "tracking URI"),
        (["check", "[/x].yaml"], ""),
        (["edit", "--task", "temporal", "--editor", ":", "--out", "x"], "cannot be imported"),
        (["edit", "--task", "temporal", "--editor", "lora", "--out", "x"], "learning_rate"),
        (
            ["edit", "--task", "temporal", "--editor", "lora", "--set", "rank", "--out", "x"],
            "name=value",
        ),
        (["export", "absent", "out"], "neither a bundle's folder nor a study"),
        (["export", "absent", "out", "--format", "gguf"], "Known: delta, merged, peft"),
        (["evaluate", "absent"], "neither a bundle's folder nor a study"),
        (["best", "absent"], "No study"),
        (["list", "modles"], "Did you mean 'models'"),
        (["frobnicate"], "No such command"),
        (["search", "--trials", "many"], "--trials"),
    ],
)
def test_mistakes_are_told_in_words(
    arguments: list[str], says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = run(*arguments)
    assert code == 2
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_check_finds_all_mistakes_at_once(run: Run, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "editor: lora\nfixed: {rnk: 3}\nsearch:\n"
        "  learning_rate: {type: float, low: 2, high: 1, log: true}\n"
    )
    study = tmp_path / "study.yaml"
    study.write_text("task: country_capitol\nspace: space.yaml\ntrials: -1\n")
    code, out, _ = run("check", str(study), str(space), "--json")
    assert code == 2
    found = json.loads(out)
    about_study = "\n".join(found[str(study)]["problems"])
    assert f"{study}:3: trials" in about_study
    assert "country_capital" in about_study
    about_space = "\n".join(found[str(space)]["problems"])
    assert f"{space}:2" in about_space
    assert f"{space}:4" in about_space
    assert run("check", "search_spaces/lora.yaml", "datasets/temporal", "demo.yaml")[0] == 0


def test_check_gives_hints_apart_from_problems(run: Run, tmp_path: Path) -> None:
    task = tmp_path / "facts"
    shutil.copytree("datasets/temporal", task)
    path = task / "val" / "ood.jsonl"
    lines = path.read_text().splitlines()
    row = {**json.loads(lines[2]), "prompt": "In which year? In "}
    row.pop("subject", None)
    path.write_text("".join(f"{line}\n" for line in [*lines[:2], json.dumps(row), *lines[3:]]))
    study = tmp_path / "study.yaml"
    study.write_text(f"task: {task}\nspace: lora\n")
    for given in (task, study):
        code, out, _ = run("check", str(given), "--json")
        assert code == 0
        (found,) = json.loads(out).values()
        assert found["problems"] == []
        (hint,) = found["hints"]
        assert hint.startswith(f"{path}:3: the prompt ends in a blank")
        code, out, _ = run("check", str(given))
        assert code == 0
        assert f"Hint: {hint}" in out
        assert f"{given}: fine" in out
    asked = ["edit", "--task", str(task), "--editor", "memit", "--out", str(tmp_path / "made")]
    code, _, err = run(*asked, "--device", "cuda:99")
    assert code == 2
    assert err.count("Hint: ") == 1


def test_check_knows_what_a_task_cannot_measure(run: Run, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("task: temporal\nconstraints: [{metric: specificity, drop: 0.1}]\n")
    for verb in ("check", "search"):
        code, out, err = run(verb, str(study))
        assert code == 2
        assert "specificity" in out + err
    assert f"{study}:2" in run("check", str(study))[1]


def test_a_stream_is_run_plotted_and_goes_on(run: Run, tmp_path: Path, general: Path) -> None:
    out = tmp_path / "mine"
    asked = ["sequential", "--task", "counterfact_world", "--editor", "lora", "--set", "epochs=2"]
    asked += ["--set", "learning_rate=1e-2", "--edits", "12", "--every", "6"]
    asked += ["--general", str(general), "--out", str(out)]
    code, shown, _ = run(*asked, "--json")
    assert code == 0
    entries = json.loads(shown)["entries"]
    assert len(entries) == 12
    assert [entry["number"] for entry in entries if entry["retention"] is not None] == [6, 12]
    assert 0 <= entries[-1]["retention"] <= 1
    assert entries[-1]["deviation"]["estimate"] != 0
    assert (out / "retention.html").read_text().startswith("<!")
    lines = (out / "stream.jsonl").read_text()
    code, shown, _ = run(*asked)
    assert code == 0
    assert "retention" in shown
    assert (out / "stream.jsonl").read_text() == lines
    code, _, err = run(*asked, "--seed", "1")
    assert code == 2
    assert "differs in seed" in err


def test_no_complaint_shows_a_password(run: Run, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("task: temporal\nstorage: postgresql://me:S3cret@db/x\nepsilon: 0.5\n")
    for arguments in (["check", str(study)], ["search", str(study)]):
        code, out, err = run(*arguments)
        assert code == 2
        assert "epsilon" in out + err
        assert "S3cret" not in out + err


def test_list_and_doctor_know_what_is_here(run: Run) -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    known = json.loads(out)
    assert "builtin:neox" in known["models"]
    assert len(known["tasks"]) >= 6
    assert {"lora", "full_finetuning"} <= set(known["editors"])
    code, out, _ = run("doctor", "--json")
    assert code == 0
    assert json.loads(out)["packages"]["core"]["torch"]


def test_every_verb_has_help_with_an_example(run: Run) -> None:
    verbs = (
        "search status compare best certify export edit evaluate sequential scaling stop check list"
    )
    for verb in (*verbs.split(), "doctor"):
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert "Example" in out
        assert "--json" in out


def test_the_readme_shows_the_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("--help")
    shown = "\n".join(line.rstrip() for line in out.strip().splitlines())
    readme = (ROOT / "README.md").read_text()
    assert shown in readme, "paste the output of `COLUMNS=80 tuner --help` into README.md"
