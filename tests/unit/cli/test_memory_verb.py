"""`tuner memory`: what a memory holds is listed and changed; of a change nothing is claimed."""

import json
from pathlib import Path

import pytest

from tests.support.bundles import bundle_of
from tests.support.command_line import Run
from tuner.bundle.bundle import Bundle
from tuner.bundle.manifest import Manifest
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, Split
from tuner.editors import find_editor
from tuner.editors._retrieval.memory import ScopedMemory
from tuner.evaluation.deviation.budget import Certificate, Deviation, Verdict
from tuner.files.cache import Cache, cache_folder
from tuner.testing.tiny_models import save_model

NEW = {"prompt": "The capital of Peru is", "target": " big"}


@pytest.fixture(params=["serac", "retrieve_and_prompt"])
def editor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _bundle(
    editor: str,
    model: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
    training: Split,
    tiny: str,
    folder: Path,
) -> Path:
    """A certified bundle of three edits."""
    kind = find_editor(editor)
    known = {
        "classifier": tiny,
        "classifier_steps": 3,
        "counterfactual": tiny,
        "counterfactual_steps": 3,
    }
    chosen = kind.model_validate({k: v for k, v in known.items() if k in kind.model_fields})
    aux = Auxiliary(corpus, training=training, cache=Cache(cache_folder()))
    (step,) = chosen.edit(model, examples, aux, seed=0)
    model.id = save_model(model, folder / "base")
    made = bundle_of(model, step.delta, editor=editor)
    certificate = Certificate(
        epsilon=1e-3,
        deviation=Deviation.none(0.95),
        verdict=Verdict.WITHIN,
        corpus="made up",
        corpus_hash="0",
    )
    manifest = made.manifest.model_copy(update={"certificate": certificate})
    return Bundle(made.delta, manifest).save(folder / "bundle")


@pytest.fixture
def bundle(
    editor: str,
    neox: LanguageModel,
    examples: ExampleSet,
    corpus: Corpus,
    training: Split,
    tiny: str,
    tmp_path: Path,
) -> Path:
    return _bundle(editor, neox, examples, corpus, training, tiny, tmp_path)


def _lines(path: Path, *rows: dict[str, str]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def _words(text: str) -> str:
    return " ".join(text.split())


def test_edits_are_listed(run: Run, bundle: Path, editor: str, examples: ExampleSet) -> None:
    code, out, err = run("memory", str(bundle))
    assert code == 0, err
    assert f"{editor}, 3 edits" in out
    for number, row in enumerate(examples.rows, start=1):
        (line,) = [line for line in out.splitlines() if row.prompt in line]
        assert str(number) in line.split()[:2]
        assert row.target.strip() in line
    code, out, _ = run("memory", str(bundle), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["bundle"] is None
    assert found["edits"] == [{"prompt": row.prompt, "target": row.target} for row in examples.rows]


def test_relative_paths_start_at_the_working_directory(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anderswo ü").mkdir()
    monkeypatch.chdir(tmp_path / "anderswo ü")
    _lines(Path("mehr.jsonl"), NEW)
    code, _, err = run("memory", "../bundle", "--add", "mehr.jsonl", "--out", "neu & größer")
    assert code == 0, err
    assert _kept(tmp_path / "anderswo ü" / "neu & größer")[-1] == NEW["prompt"]
    code, out, err = run("memory", "neu & größer", "--json")
    assert (code, len(json.loads(out)["edits"])) == (0, 4), err


def _kept(bundle: Path) -> list[str]:
    delta = Bundle.load(bundle).delta
    assert isinstance(delta, ScopedMemory)
    return [edit.prompt for edit in delta.edits]


def test_edits_are_added_and_removed_into_another_bundle(
    run: Run, bundle: Path, examples: ExampleSet, tmp_path: Path
) -> None:
    _first, second, third = examples.rows
    before = (bundle / "delta.json").read_bytes()
    add = _lines(tmp_path / "more.jsonl", NEW, {"prompt": second.prompt, "target": " Santiago"})
    out_folder = str(tmp_path / "changed")
    code, out, err = run("memory", str(bundle), "--remove", "1", "--add", add, "--out", out_folder)
    assert code == 0, err
    assert out_folder in out
    assert "Its results are those before the change" in _words(err)
    assert (bundle / "delta.json").read_bytes() == before
    changed = Bundle.load(out_folder)
    assert isinstance(changed.delta, ScopedMemory)
    assert [edit.prompt for edit in changed.delta.edits] == [
        third.prompt,
        NEW["prompt"],
        second.prompt,
    ]
    assert changed.delta.edits[-1].target == " Santiago"
    # It is no longer what was measured, and says so.
    assert changed.manifest.changed
    assert changed.manifest.certificate is None
    assert json.loads((tmp_path / "changed" / "delta.json").read_text())["changed"] is True
    described = Manifest.model_fields["changed"].description
    assert described is not None
    assert "those of the memory before" in _words(described)
    plain = Bundle.load(bundle).manifest
    assert not plain.changed
    assert plain.certificate is not None
    assert "changed" not in json.loads(before)
    assert changed.manifest.answers == plain.answers


def test_several_edits_are_removed_by_the_numbers_of_the_list(
    run: Run, bundle: Path, examples: ExampleSet, tmp_path: Path
) -> None:
    out_folder = tmp_path / "changed"
    code, out, err = run(
        "memory", str(bundle), "--remove", "1", "--remove", "3", "--out", str(out_folder), "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    second = examples.rows[1]
    assert found["edits"] == [{"prompt": second.prompt, "target": second.target}]
    assert Path(found["bundle"]) == out_folder


def test_wrong_input_is_refused_and_nothing_is_written(
    run: Run, bundle: Path, tmp_path: Path
) -> None:
    good = _lines(tmp_path / "good.jsonl", NEW)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(f'{json.dumps(NEW)}\n{{"prompt": "half\n')
    lacking = _lines(tmp_path / "lacking.jsonl", NEW, NEW, {"prompt": "no target"})
    out = str(tmp_path / "changed")
    for given, said in (
        (["--add", good], "give --out with them"),
        (["--remove", "1"], "give --out with them"),
        (["--out", out], "give --out with them"),
        (["--remove", "4", "--out", out], "There is no edit 4: the memory has 3"),
        (["--remove", "0", "--out", out], "greater than or equal to 1"),
        (["--add", str(broken), "--out", out], "broken.jsonl:2: not valid JSON"),
        (["--add", lacking, "--out", out], "lacking.jsonl:3: target"),
        (["--add", str(tmp_path / "none.jsonl"), "--out", out], "it does not exist"),
    ):
        code, _, err = run("memory", str(bundle), *given)
        assert code == 2, given
        assert said in _words(err), err
    assert not Path(out).exists()
    code, _, err = run("memory", str(tmp_path / "nothing"))
    assert code == 2


def test_a_delta_without_text_edits_is_refused(
    run: Run, neox: LanguageModel, examples: ExampleSet, corpus: Corpus, tmp_path: Path
) -> None:
    editor = find_editor("look_up")()
    (step,) = editor.edit(neox, examples, Auxiliary(corpus), seed=0)
    folder = bundle_of(neox, step.delta, editor="look_up").save(tmp_path / "bundle")
    code, _, err = run("memory", str(folder))
    assert code == 2
    assert "keeps no edits as text" in _words(err)
