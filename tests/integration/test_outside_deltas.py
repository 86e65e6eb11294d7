"""A module outside of tuner brings its own editor, kind of delta and export format."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.command_line import Run
from tests.support.search_world import make_world
from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.deltas.registry import allow_kind, find_kind
from tuner.errors import ConfigError, UnknownKind

MINE = '''\
"""An editor that raises the logit of one token wherever the model speaks."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import BaseModel

from tuner import Delta, Editor, EpochEdit
from tuner.bundle.export_format import ExportFormat, Written


class BiasState(BaseModel):
    token: int
    strength: float


@dataclass(frozen=True)
class LogitBias(Delta):
    token: int
    bias: torch.Tensor
    strength: float = 1.0
    state_type: ClassVar[type[BaseModel]] = BiasState

    @contextmanager
    def applied(self, network):
        def add(module, inputs, output):
            output.logits = output.logits.clone()
            output.logits[..., self.token] += self.strength * self.bias.to(output.logits)

        handle = network.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def scaled(self, alpha):
        return replace(self, strength=self.strength * alpha)

    def tensors(self):
        return {"bias": self.bias}

    @property
    def state(self):
        return BiasState(token=self.token, strength=self.strength)

    @classmethod
    def restore(cls, state, tensors, surroundings):
        return cls(state.token, tensors["bias"], state.strength)

    def describe(self):
        return "the logit of one token"


class Bias(Editor):
    """Raises a logit."""

    size: float = 0.05

    def steps(self, model, examples, aux, *, seed):
        token = model.encode(examples.rows[0].target)[0]
        yield EpochEdit(LogitBias(token, torch.tensor(self.size)))


def make_hidden():
    class Hidden(LogitBias):
        pass

    return Hidden


class Nowhere(Bias):
    """Yields a delta that no bundle could name."""

    def steps(self, model, examples, aux, *, seed):
        yield EpochEdit(make_hidden()(0, torch.tensor(self.size)))


class Note(ExportFormat):
    """A text about the edit."""

    def refusal(self, source):
        kind = source.manifest.kind
        return None if kind.endswith("LogitBias") else f"A change of kind {kind!r} has no note."

    def write(self, source, folder):
        (folder / "note.txt").write_text(source.delta.describe())
        return Written("in words", card=f"# {source.manifest.task}\\n")
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the module `mine`, which nobody has imported."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    """Be as a process in which nobody has named the module yet."""
    sys.modules.pop("mine", None)


def _edit(world: Path, editor: str, out: str) -> list[str]:
    return [
        *("edit", "--model", str(world / "model"), "--task", str(world / "task")),
        *("--general", str(world / "general.txt"), "--budget", "0.2", "--device", "cpu"),
        *("--editor", editor, "--out", out),
    ]


def test_an_own_kind_is_edited_evaluated_certified_and_exported(
    world: Path, place: Path, run: Run
) -> None:
    code, out, err = run(*_edit(world, "mine:Bias", "edit"), "--json")
    assert code == 0, err
    manifest = json.loads((place / "edit" / "delta.json").read_text())
    assert manifest["kind"] == "mine:LogitBias"
    assert manifest["memory"].keys() == {"token", "strength"}
    text = ("--general", str(world / "general.txt"), "--device", "cpu")
    allowed = ("--allow-kind", "mine:LogitBias")
    # A certificate needs more documents than a search.
    lines = (world / "general.txt").read_text().splitlines()
    sentences = [line.removesuffix(" .").split(" . ") for line in lines]
    others = [
        " . ".join(parts[turn:] + parts[:turn][::-1]) + " ."
        for parts in sentences
        for turn in (1, 2, 3)
    ]
    backwards = [" . ".join(reversed(parts)) + " ." for parts in sentences]
    (place / "more.txt").write_text("\n".join(lines + backwards + others))
    more = ("--general", str(place / "more.txt"), "--device", "cpu")

    _forget()
    code, out, err = run(
        *("evaluate", "edit", "--task", str(world / "task")), *text, *allowed, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["deviation"]["estimate"] != 0

    _forget()
    code, out, err = run("certify", "edit", *more, *allowed, "--json")
    assert code == 0, err
    certified = json.loads((place / "edit" / "delta.json").read_text())["certificate"]
    assert certified["verdict"] == "within"

    _forget()
    code, out, err = run("export", "edit", "copy", *allowed, "--json")
    assert code == 0, err
    assert json.loads(out)["format"] == "delta"
    code, out, err = run("export", "edit", "merged", "--format", "merged", *allowed)
    assert (code, (place / "merged").exists()) == (2, False)
    assert "runs beside the model" in err
    code, out, err = run("export", "edit", "note", "--format", "mine:Note", *allowed, "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "folder": str(place / "note"),
        "format": "mine:Note",
        "note": "in words",
    }
    assert (place / "note" / "note.txt").read_text() == "the logit of one token"
    assert (place / "note" / "README.md").read_text() == "# tiny\n"


def test_a_format_from_outside_says_what_it_cannot_hold(world: Path, place: Path, run: Run) -> None:
    settings = ("--set", "learning_rate=1e-3", "--set", "epochs=1")
    code, _, err = run(*_edit(world, "lora", "edit"), *settings)
    assert code == 0, err
    code, _, err = run("export", "edit", "note", "--format", "mine:Note")
    assert (code, (place / "note").exists()) == (2, False)
    assert "A change of kind 'weights' has no note." in " ".join(err.split())


def test_a_bundle_makes_nobody_import_the_module_that_it_names(
    world: Path, place: Path, run: Run
) -> None:
    code, _, err = run(*_edit(world, "mine:Bias", "edit"))
    assert code == 0, err
    _forget()
    (place / "mine.py").write_text("raise SystemExit('a stranger ran code')\n")
    for verb in (("evaluate", "edit"), ("certify", "edit"), ("export", "edit", "out")):
        code, _, err = run(*verb)
        told = " ".join(err.split())
        assert code == 2, told
        assert "The bundle edit cannot be used here: delta.json" in told
        assert "--allow-kind" in told
        assert "mine" not in sys.modules
    with pytest.raises(UnknownKind, match="mine:LogitBias"):
        StoredBundle.load(place / "edit")


def test_what_was_imported_already_may_be_named_if_it_is_a_delta(place: Path) -> None:
    with pytest.raises(UnknownKind):
        find_kind("mine:LogitBias")
    kind = allow_kind("mine:LogitBias")
    assert find_kind("mine:LogitBias") is kind
    for name, words in (
        ("mine:Bias", "is not a class of delta kinds"),
        ("mine:Absent", "cannot be imported"),
        ("os:system", "is not a class of delta kinds"),
        ("nudge", "No delta kind is called 'nudge'"),
    ):
        with pytest.raises(UnknownKind, match=words):
            find_kind(name)
    with pytest.raises(ConfigError, match="cannot be imported"):
        allow_kind("nowhere_at_all:Kind")


def test_an_installed_package_offers_its_kind_by_an_entry_point(
    world: Path, place: Path, run: Run
) -> None:
    record = place / "mine-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[tuner.deltas]\nlogit_bias = mine:LogitBias\n")
    sys.path.insert(0, str(place))
    code, _, err = run(*_edit(world, "mine:Bias", "edit"))
    assert code == 0, err
    manifest = json.loads((place / "edit" / "delta.json").read_text())
    assert manifest["kind"] == "logit_bias"
    _forget()
    assert type(Bundle.load(place / "edit").delta).__name__ == "LogitBias"
    _forget()
    # A bundle from before the package offered it.
    (place / "edit" / "delta.json").write_text(json.dumps(manifest | {"kind": "mine:LogitBias"}))
    loaded = Bundle.load(place / "edit").delta
    assert torch.equal(loaded.tensors()["bias"], torch.tensor(0.05))


def test_a_delta_that_no_bundle_can_name_is_refused_before_it_is_measured(
    world: Path, place: Path, run: Run
) -> None:
    code, _, err = run(*_edit(world, "mine:Nowhere", "edit"))
    assert (code, (place / "edit").exists()) == (2, False)
    assert "Define the class at the top level of an importable module" in " ".join(err.split())
