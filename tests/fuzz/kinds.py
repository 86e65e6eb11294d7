"""Every kind of input that a user gives: how a valid one is made, and what reads it."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from tests.support.made_up_study import made_up_study
from tests.support.published_rows import (
    claim_record,
    counterfact_record,
    question_record,
    topic_record,
    write_list,
    write_rows,
    zsre_record,
)
from tests.support.search_world import make_world
from tuner.bundle.bundle import Bundle
from tuner.editing.companions import Companions
from tuner.editing.corpus import FileDocuments, GeneralText, TextPart
from tuner.editing.editor import Auxiliary
from tuner.editing.model import load_model
from tuner.editing.task import Example, ExampleSet, Split, Task
from tuner.editing.task_folder import load_task, read_rows, save_task
from tuner.editors import find_editor
from tuner.editors._retrieval.memory import ScopedMemory
from tuner.evaluation.deviation.budget import Budget, Certificate
from tuner.evaluation.scores import Scores
from tuner.files.cache import Cache
from tuner.importers.canonical_examples import import_canonical_examples
from tuner.importers.counterfact import import_counterfact
from tuner.importers.scoped_edits import EditCounts
from tuner.importers.selection import FactSelection
from tuner.importers.serac.dialogue import import_serac_dialogue
from tuner.importers.serac.fact_checking import import_serac_fact_checking
from tuner.importers.serac.qa import import_serac_qa, import_serac_qa_hard
from tuner.importers.zsre import import_zsre
from tuner.launch.kubernetes.cluster import load_cluster
from tuner.protocols.sequential import run_sequence
from tuner.search import StudyConfig, check_study, load_space, load_study, open_study
from tuner.search.objective import Objective
from tuner.search.space import Space
from tuner.search.storage.folder import StudyFolder, TrialFile, read_whole
from tuner.search.storage.ledger import Ledger
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import SeedResult, StudyResultRecord

from .mutations import VALUES, Format, change_file
from .run import Refused

Read = Callable[[], object]


class Kind(Protocol):
    """A kind of input."""

    name: str

    def make(self, folder: Path) -> None:
        """Write a valid input."""

    def valid(self, folder: Path) -> Read:
        """Return what reads it as it is."""

    def changed(self, folder: Path, draw: Random) -> tuple[str, Read]:
        """Change it; return in words how, and what reads it."""

    def restore(self, folder: Path) -> None:
        """Make it valid again."""


@dataclass
class FileKind:
    """Files, one of which is changed."""

    name: str
    write: Callable[[Path], Sequence[tuple[str, Format]]]
    read: Callable[[Path], object]
    _files: dict[Path, tuple[Format, bytes]] = field(default_factory=dict)
    _changed: Path | None = None

    def make(self, folder: Path) -> None:
        """Write a valid input."""
        self._files = {
            folder / name: (format, (folder / name).read_bytes())
            for name, format in self.write(folder)
        }

    def valid(self, folder: Path) -> Read:
        """Return what reads it as it is."""
        return lambda: self.read(folder)

    def changed(self, folder: Path, draw: Random) -> tuple[str, Read]:
        """Change one of the files."""
        path = draw.choice(list(self._files))
        self._changed = path
        how = change_file(path, self._files[path][0], draw)
        return f"{path.relative_to(folder)}: {how}", lambda: self.read(folder)

    def restore(self, folder: Path) -> None:
        """Put the valid files back, those too that were written or removed by their reader."""
        if self._changed is not None:
            _remove(self._changed)
        self._changed = None
        for path, (_, content) in self._files.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        _remove(folder / "out")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


# --- Studies, spaces and clusters -----------------------------------------------------------------

_ROW = {"prompt": "The capital of Togo is", "target": " Lome", "subject": "Togo", "record": "1"}
_CARD = {
    "name": "towns",
    "description": "Towns.",
    "loss": "likelihood",
    "success": "likelier",
    "source": "made up",
    "licence": "Apache-2.0",
    "constraints": [{"metric": "exact", "drop": 0.05}],
    "simultaneous_edits": 1,
}


def _write_task(folder: Path) -> list[tuple[str, Format]]:
    _text(folder / "task.yaml", json.dumps(_CARD))
    files = [("task.yaml", Format.YAML)]
    for split, country in (("val", "Togo"), ("test", "Peru"), ("train", "Mali")):
        row = {
            "prompt": f"The capital of {country} is",
            "target": " Lome",
            "contrast": " Lima",
            "subject": country,
            "record": "1",
        }
        rows: dict[str, list[dict[str, Any]]] = {
            "canonical": [row],
            "ood": [row | {"prompt": f"{country} has as its capital"}],
            "hard_negatives": [row | {"prompt": f"The river of {country} is", "record": "1"}],
            "related": [{"text": f"{country} is a country."}],
            "neighbours": [row | {"prompt": f"{country} borders"}],
            "generations": [
                {"prompt": f"{country} is known", "record": "1", "references": ["a b", "c"]}
            ],
            "facts": [{"prompt": f"{country} lies in", "target": " a continent"}],
        }
        for part, lines in rows.items():
            write_rows(folder / split / f"{part}.jsonl", lines)
            files.append((f"{split}/{part}.jsonl", Format.JSON_LINES))
    return files


def _write_card(folder: Path) -> list[tuple[str, Format]]:
    return _write_task(folder)[:1]


def _write_task_rows(folder: Path) -> list[tuple[str, Format]]:
    return _write_task(folder)[1:]


def _read_task(folder: Path) -> object:
    task = load_task(folder)
    save_task(task, folder / "out")
    same = load_task(folder / "out")
    if same.hash != task.hash:
        raise AssertionError("A task that is saved and loaded is another one.")
    return task.with_edits(None).val.limited(1)


_STUDY = {
    "name": "capitals",
    "model": "somebody/some-model",
    "task": "data/task",
    "space": "./space.yaml",
    "general": "./general.txt",
    "device": "cpu",
    "dtype": "float32",
    "trials": 4,
    "seed": 1,
    "workers": 1,
    "gpus_per_worker": 0.5,
    "budget": {"epsilons": [1e-3, 1e-4], "confidence": 0.95},
    "constraints": [{"metric": "hard_negative_loss", "rise": 0.05}],
    "rule": "fitted",
    "epsilon": 1e-3,
    "sampler": "tpe",
    "confirm_top": 2,
    "test_seeds": 2,
    "storage": "sqlite:///ledger.db",
    "ledger_patience_s": 10,
    "max_failures": 1,
    "time_limit_s": 3600,
}
_SPACE = {
    "description": "A space.",
    "editor": "lora",
    "fixed": {"epochs": 3, "batch_size": 2},
    "search": {
        "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "rank": {"type": "int", "low": 1, "high": 8, "log": True},
        "width": {"type": "float", "low": 0.2, "high": 0.8, "step": 0.2},
        "kl_weight": {"type": "categorical", "choices": [0.0, 0.5, 1]},
    },
}


def _write_study(folder: Path) -> list[tuple[str, Format]]:
    _write_task(folder / "data" / "task")
    _text(folder / "space.yaml", json.dumps(_SPACE))
    _text(folder / "general.txt", "A document.\n")
    _text(folder / "study.yaml", json.dumps(_STUDY))
    return [("study.yaml", Format.YAML)]


def _read_study(folder: Path) -> object:
    path = folder / "study.yaml"
    problems = check_study(path)
    if problems:
        raise Refused("\n".join(problems))
    config = load_study(path)
    return config.identity, config.worker_count, config.target_epsilon


def _write_space(folder: Path) -> list[tuple[str, Format]]:
    _text(folder / "space.yaml", json.dumps(_SPACE))
    _text(folder / "both.yaml", json.dumps({"editors": ["./space.yaml", "full_finetuning"]}))
    return [("space.yaml", Format.YAML), ("both.yaml", Format.YAML)]


def _read_space(folder: Path) -> object:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in ("space.yaml", "both.yaml"):
        space = load_space(folder / name)
        json.dumps(space.definition, allow_nan=False)
        Space.definition_from_before(space.definition)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(3):
            space.build(space.draw(study.ask()))
    return None


_CLUSTER = {
    "image": "registry.example/tuner:0.1.0",
    "head": {"cpu": "1", "memory": "4Gi", "node_selector": {"pool": "head"}},
    "workers": [
        {
            "name": "gpu",
            "cpu": "2",
            "memory": "8Gi",
            "gpus": 1,
            "least": 0,
            "most": 4,
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
        }
    ],
    "mlflow": {
        "uri": "http://tuner-mlflow:5000",
        "username": {"secret": "client", "key": "username"},
        "password": {"secret": "client", "key": "password"},
    },
}


def _write_cluster(folder: Path) -> list[tuple[str, Format]]:
    _text(folder / "cluster.yaml", json.dumps(_CLUSTER))
    return [("cluster.yaml", Format.YAML)]


def _read_cluster(folder: Path) -> object:
    from tuner.launch import as_yaml
    from tuner.launch.kubernetes.render import render

    cluster = load_cluster(str(folder / "cluster.yaml"))
    study = StudyConfig(name="capitals", task="country_capital", model="builtin:neox")
    rendered = render(study, cluster)
    return as_yaml([rendered.config_map.manifest(), rendered.rayjob.manifest()])


# --- General text and published files -------------------------------------------------------------


def _write_plain(folder: Path) -> list[tuple[str, Format]]:
    _text(folder / "text.txt", "".join(f"The {n}th document of éight words.\n" for n in range(30)))
    return [("text.txt", Format.TEXT)]


def _write_json_text(folder: Path) -> list[tuple[str, Format]]:
    names = ("text.jsonl", "text.NDJSON", "text.json")
    for name in names:
        write_rows(folder / name, [{"text": f"Document {n}.", "id": n} for n in range(12)])
    return [(name, Format.JSON_LINES) for name in names]


def _reading_text(*names: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        found = [
            list(FileDocuments(folder / name).documents(part))
            for name in names
            for part in TextPart
        ]
        json.dumps(found).encode()
        return found

    return read


def _imported(task: Task, folder: Path) -> object:
    """An importer may refuse a file, but what it takes must load."""
    save_task(task, folder / "out")
    try:
        loaded = load_task(folder / "out")
    except Exception as error:
        raise AssertionError(f"An imported task does not load: {error}") from error
    if loaded.hash != task.hash:
        raise AssertionError("An imported task is another one once it is loaded.")
    return loaded


_CANONICAL = ("canonical-val", "canonical-test")


def _write_canonical(folder: Path) -> list[tuple[str, Format]]:
    files = []
    for part, countries in (("val", ("Togo", "Mali")), ("test", ("Peru", "Cuba"))):
        rows: dict[str, list[dict[str, Any]]] = {
            "fixed": [{"prefix": f"The capital of {c} is", "suffix": " X"} for c in countries],
            "clear_eval": [{"prefix": f"{c} is led from", "suffix": " X"} for c in countries],
            "hard_neg": [{"prefix": f"{c} exports", "suffix": " tin"} for c in countries],
            "unconditional": [{"text": f"{c} is a country."} for c in countries],
        }
        for stem, lines in rows.items():
            name = f"country_capital_{stem}-{part}.jsonl"
            extra = {"country": countries[0], "capital": "X", "entity_string": "x/wiki/Togo_(land)"}
            write_rows(folder / name, [line | extra for line in lines])
            files.append((name, Format.JSON_LINES))
    return files


def _read_canonical(folder: Path) -> object:
    return _imported(import_canonical_examples(folder, "country_capital", "c"), folder)


def _write_counterfact(folder: Path) -> list[tuple[str, Format]]:
    write_list(folder / "counterfact.json", [counterfact_record(n) for n in range(8)])
    snippets = [{"relation_id": "P206", "target_id": "Q1", "samples": [{"text": "A text."}]}]
    write_list(folder / "snippets.json", snippets)
    return [("counterfact.json", Format.JSON), ("snippets.json", Format.JSON)]


def _read_counterfact(folder: Path) -> object:
    selection = FactSelection(val=2, test=2)
    task = import_counterfact(
        folder / "counterfact.json", "cf", selection, folder / "snippets.json"
    )
    return _imported(task, folder)


def _write_zsre(folder: Path) -> list[tuple[str, Format]]:
    write_list(folder / "zsre.json", [zsre_record(n) for n in range(8)])
    return [("zsre.json", Format.JSON)]


def _read_zsre(folder: Path) -> object:
    return _imported(import_zsre(folder / "zsre.json", "z", FactSelection(val=2, test=2)), folder)


def _write_questions(folder: Path) -> list[tuple[str, Format]]:
    files = []
    for start, part in ((0, "train"), (100, "dev"), (200, "test")):
        name = f"structured_zeroshot-{part}-new_annotated_final.jsonl"
        numbers = range(start, start + 40)
        write_rows(folder / name, [question_record(n) for n in numbers])
        implied = [[[f"Who sailed Tern {n}?", "She did", 1]] for n in numbers]
        _text(folder / f"impl_{part}.json", json.dumps(implied))
        _text(folder / f"zsre_yn_{part}.txt", "".join(f"She sailed Tern {n}\n" for n in numbers))
        files += [
            (name, Format.JSON_LINES),
            (f"impl_{part}.json", Format.JSON),
            (f"zsre_yn_{part}.txt", Format.TEXT),
        ]
    return files


_FEW = EditCounts(train=2, val=2, test=2, simultaneous=2)


def _read_questions(folder: Path) -> object:
    _imported(import_serac_qa(folder, "qa", _FEW), folder)
    _remove(folder / "out")
    return _imported(import_serac_qa_hard(folder, "hard", _FEW), folder)


def _write_claims(folder: Path) -> list[tuple[str, Format]]:
    files = []
    labels = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    for start, part in ((0, "train"), (100, "dev"), (200, "test")):
        rows = [claim_record(n, labels[n % 3]) for n in range(start, start + 15)]
        write_rows(folder / f"{part}.jsonl", rows)
        files.append((f"{part}.jsonl", Format.JSON_LINES))
    return files


def _read_claims(folder: Path) -> object:
    return _imported(import_serac_fact_checking(folder, "fc", _FEW), folder)


def _write_topics(folder: Path) -> list[tuple[str, Format]]:
    files = []
    for start, part in ((0, "train"), (100, "val"), (200, "test")):
        write_list(
            folder / f"blender_{part}.json", [topic_record(n) for n in range(start, start + 6)]
        )
        files.append((f"blender_{part}.json", Format.JSON))
    return files


def _read_topics(folder: Path) -> object:
    return _imported(import_serac_dialogue(folder, "d", _FEW), folder)


# --- Bundles and memories -------------------------------------------------------------------------


@dataclass
class _World:
    """The tiny model with its task and text, made once for all kinds."""

    folder: Path | None = None

    def at(self, folder: Path) -> Path:
        """Return the folder of the tiny world, made beside the kinds."""
        if self.folder is None or not self.folder.is_dir():
            self.folder = make_world(folder.parent / "world")
        return self.folder


_WORLD = _World()
_EDITORS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 1e-2, "epochs": 1, "rank": 2},
    "locft_bf": {"learning_rate": 1e-2, "epochs": 1, "depth": 0.5},
    "look_up": {"threshold": 0.5},
    "grace": {"value_steps": 3},
    "wise": {"most_steps": 2, "prefixes": 0},
    "retrieve_and_prompt": {"classifier_steps": 2},
}


@dataclass
class BundleKind(FileKind):
    """Bundles of several editors, of which one is changed and read."""

    _evaluator: Evaluator | None = None

    def evaluator(self, folder: Path) -> Evaluator:
        """Return the tiny world as trials see it."""
        if self._evaluator is None:
            world = _WORLD.at(folder)
            model = load_model(str(world / "model"), device="cpu")
            general = GeneralText(FileDocuments(world / "general.txt"), model, block_length=16)
            task = load_task(world / "task")
            budget = Budget(epsilons=(1e-1,))
            self._evaluator = Evaluator(model, task, budget, general, cache=Cache(folder / "cache"))
        return self._evaluator


def _training(task: Task) -> Split:
    """Other edits, each with a row in and out of its scope."""

    def named(rows: ExampleSet) -> ExampleSet:
        some = tuple(
            row.model_copy(update={"record": str(n)}) for n, row in enumerate(rows.rows[:2])
        )
        return rows.model_copy(update={"rows": some})

    return task.test.model_copy(
        update={
            "canonical": named(task.test.canonical),
            "ood": named(task.test.ood),
            "hard_negatives": named(task.test.hard_negatives),
        }
    )


def _write_bundles(kind: BundleKind, folder: Path) -> None:
    """Write a bundle of each editor; they are made once and copied from then on."""
    from tests.support.bundles import bundle_of

    evaluator = kind.evaluator(folder)
    store = _WORLD.at(folder).parent / "bundles"
    if store.is_dir():
        shutil.copytree(store, folder, dirs_exist_ok=True)
        return
    model = evaluator.model
    examples = evaluator.task.val.canonical
    examples = examples.model_copy(
        update={
            "rows": tuple(
                row.model_copy(update={"subject": row.prompt.split()[1]})
                for row in examples.rows[:3]
            )
        }
    )
    aux = Auxiliary(
        evaluator.general.corpus(TextPart.AUXILIARY),
        training=_training(evaluator.task),
        cache=Cache(folder / "cache"),
        companions=Companions("cpu"),
    )
    for name, settings in _EDITORS.items():
        tiny = str(_WORLD.at(folder) / "model")
        more = {"classifier": tiny} if name == "retrieve_and_prompt" else {}
        editor = find_editor(name).model_validate({**settings, **more})
        *_, step = editor.edit(model, examples, aux, seed=0)
        bundle_of(model, step.delta, editor=name).save(folder / name)
        shutil.copytree(folder / name, store / name)


def _bundle_kind(name: str, file: str, format: Format) -> BundleKind:
    def write(folder: Path) -> Sequence[tuple[str, Format]]:
        _write_bundles(kind, folder)
        if format is Format.TENSORS:
            # As in bundles from before there was one, so that readers get to see the tensors.
            for editor in _EDITORS:
                manifest = json.loads((folder / editor / "delta.json").read_text())
                del manifest["tensors_hash"]
                _text(folder / editor / "delta.json", json.dumps(manifest))
        return [
            (f"{editor}/{file}", format)
            for editor in _EDITORS
            if format is not Format.TENSORS or _has_tensors(folder / editor / file)
        ]

    def read(folder: Path) -> object:
        model = kind.evaluator(folder).model
        changed = kind._changed
        which = [changed.parent] if changed is not None else [folder / one for one in _EDITORS]
        for path in which:
            bundle = Bundle.load(path, Companions("cpu"))
            bundle.check_base(model)
            bundle.save(folder / "out")
            with torch.no_grad(), model.edited(bundle.delta):
                model.complete("The car is")
            with torch.no_grad(), model.edited(bundle.delta.scaled(0.5)):
                model.complete("The car is")
        return None

    kind = BundleKind(name, write, read)
    return kind


def _has_tensors(path: Path) -> bool:
    from safetensors.torch import load_file

    return bool(load_file(path))


def _memory_kind() -> BundleKind:
    def write(folder: Path) -> Sequence[tuple[str, Format]]:
        _write_bundles(kind, folder)
        rows = [{"prompt": f"The {n} is", "target": " blue", "subject": n} for n in ("cup", "pen")]
        write_rows(folder / "edits.jsonl", rows)
        return [("edits.jsonl", Format.JSON_LINES)]

    def read(folder: Path) -> object:
        model = kind.evaluator(folder).model
        memory = Bundle.load(folder / "retrieve_and_prompt", Companions("cpu")).delta
        assert isinstance(memory, ScopedMemory)
        rows = [row for _, row in read_rows(folder / "edits.jsonl", Example)]
        more = memory.with_edits(rows)
        more.state.model_dump_json()
        with torch.no_grad(), model.edited(more):
            return model.complete("The cup is")

    kind = BundleKind("memory edits", write, read)
    return kind


def _stream_kind() -> BundleKind:
    def evaluator(folder: Path) -> tuple[Evaluator, Any]:
        plain = kind.evaluator(folder)
        return plain, find_editor("look_up").model_validate(_EDITORS["look_up"])

    def write(folder: Path) -> Sequence[tuple[str, Format]]:
        run_sequence(*evaluator(folder), seed=0, every=2, path=folder / "stream.jsonl")
        return [("stream.jsonl", Format.JSON_LINES)]

    def read(folder: Path) -> object:
        return run_sequence(
            *evaluator(folder), seed=0, every=2, path=folder / "stream.jsonl"
        ).measured

    kind = BundleKind("stream resume", write, read)
    return kind


# --- Study folders --------------------------------------------------------------------------------


def _write_study_folder(folder: Path) -> list[tuple[str, Format]]:
    place = StudyFolder(folder / "study")
    _text(folder / "space.yaml", json.dumps(_SPACE))
    space = load_space(folder / "space.yaml")
    made = made_up_study(folder / "made", trials=6)
    config = StudyConfig(task="country_capital", name="study", trials=6)
    asked = {
        **config.identity,
        "space definition": json.loads(json.dumps(space.definition)),
        "task content": "0",
        "uid": "u",
        "trials": 6,
    }
    with Ledger.drive(place, "study") as ledger:
        ledger.set_definition(asked)
        for number, entry in enumerate(made.entries):
            parameters = {"learning_rate": 1e-3, "rank": 2, "width": 0.4, "kl_weight": 0.5}
            ledger.add(parameters | {"learning_rate": 1e-3 + number * 1e-4}, space)
            parameters = ledger.parameters(number)
            file = TrialFile(uid="u", number=number, parameters=parameters, record=entry.record)
            with place.publishing(file):
                pass
            if number < 4:
                ledger.complete(
                    number, Objective(value=0.1 * number, constraints={"budget": -1.0}), None
                )
    place.claim_base("f" * 64, "t" * 64)
    place.claim_companions({"builtin:backpack": "c" * 64})
    winner = made.winners[0]
    epsilon, number = winner.epsilon, winner.trial
    assert winner.certificate is not None
    confirmed = place.confirmation(epsilon, number)
    _text(confirmed, winner.certificate.model_dump_json())
    tested = place.retest(epsilon, number, 100)
    _text(tested, winner.test[0].model_dump_json())
    _text(place.test_base, winner.validation.scores.model_dump_json())
    summary = made.summary.model_copy(update={"folder": place.root})
    _text(place.result, made.model_copy(update={"summary": summary}).model_dump_json())
    _text(place.holder, json.dumps({"pid": 1, "host": "h", "started": "2026-01-01T00:00:00"}))
    record = place.trial(1) / "record.json"
    unfinished = place.trial(5) / "record.json"
    companion = next(place.companions.iterdir())
    files = (confirmed, tested, place.test_base, place.result, place.base, record, unfinished)
    named = [(str(path.relative_to(folder)), Format.JSON) for path in (*files, companion)]
    journal = str(place.journal.relative_to(folder))
    holder = str(place.holder.relative_to(folder))
    return [*named, (journal, Format.JSON_LINES), (holder, Format.JSON)]


def _read_study_folder(folder: Path) -> object:
    place = StudyFolder(folder / "study")
    result = open_study(place.root)
    json.dumps(result.record.model_dump(mode="json"))
    with Ledger.drive(place, "study") as ledger:
        for number in ledger.running():
            ledger.left_behind(number)
        ledger.trials()
        ledger.history()
    place.base_fingerprint()
    place.claim_base("f" * 64, "t" * 64)
    place.claim_companions({"builtin:backpack": "c" * 64})
    read_whole(place.test_base, Scores)
    for path in place.root.glob("confirm/*/*.json"):
        read_whole(path, Certificate)
    for path in place.root.glob("test/*/*.json"):
        read_whole(path, SeedResult)
    return read_whole(place.result, StudyResultRecord)


# --- Command-line arguments -----------------------------------------------------------------------

_ARGUMENTS = (
    *(f"\udcff\udcfe{'' if n else ' '}" for n in range(2)),
    *("--", "-", "--help", "-h", "--json", "--seed", "--nothing", "--set", "=", "a=", "=a"),
    *("a" * 5000, "x/" * 3000, "1e999", "nan", "-inf", "9" * 5000, "--epsilon", "1e-3", "\u2028"),
    *("rank=&a [*a]", "rank=2023-99-99", "rank=!!int abc", "rank=" + "[" * 5000, "rank=.inf"),
)


# What somebody has typed may be shown: no secret is kept from its own command line.
_WORDS = [str(value).replace("SESAME", "secret") for value in VALUES]


@dataclass
class ArgumentsKind:
    """Command lines of verbs that only look or read; one argument or more are changed."""

    name: str = "command-line arguments"

    def make(self, folder: Path) -> None:
        """Write the files that valid command lines name."""
        (folder / "study").mkdir(parents=True)
        _write_study(folder / "study")
        sent = {"name": "sent", "task": "country_capital", "model": "builtin:neox", "trials": 2}
        _text(folder / "sent.yaml", json.dumps(sent))
        _write_study_folder(folder)
        _write_cluster(folder)
        _write_counterfact(folder)
        os.mkfifo(folder / "pipe")

    def valid(self, folder: Path) -> Read:
        """Return what runs the command lines that want nothing that is not there."""
        missing = ("none.jsonl", "./none", "evaluate", "export", "best", "compare")
        lines = [line for line in self._lines(folder) if not set(missing) & set(line)]
        return lambda: [self._run(line, folder) for line in lines]

    def _lines(self, folder: Path) -> list[list[str]]:
        study, at = str(folder / "study" / "study.yaml"), ["--folder", str(folder)]
        cluster = str(folder / "cluster.yaml")
        edit = ["edit", "--task", "./none", "--editor", "lora", "--set", "rank=3", "--out", "out"]
        return [
            ["check", study],
            [
                "check",
                str(folder / "space.yaml"),
                str(folder / "study" / "data" / "task"),
                "--json",
            ],
            ["list", "spaces", "--json"],
            ["status", "study", *at],
            ["compare", *at, "--json"],
            ["best", "study", "--epsilon", "0.001", *at],
            ["launch", str(folder / "sent.yaml"), "--dry-run", "--cluster", cluster],
            ["export", "study", str(folder / "out"), "--epsilon", "0.001", *at],
            ["memory", "study", "--add", "none.jsonl", "--out", str(folder / "out"), *at],
            ["evaluate", "study", "--split", "test", *at],
            [*edit[:-1], str(folder / "out")],
            [
                *("data", "import", "counterfact", str(folder / "counterfact.json")),
                *("--out", str(folder / "out"), "--val", "2", "--test", "2"),
            ],
        ]

    def changed(self, folder: Path, draw: Random) -> tuple[str, Read]:
        """Change some of the arguments, and never the verb, so that nothing long begins."""
        line = list(draw.choice(self._lines(folder)))
        for _ in range(draw.choice((1, 1, 2))):
            at = draw.randrange(1, len(line) + 1)
            word = draw.choice((*_ARGUMENTS, *_WORDS, str(folder), str(folder / "pipe")))
            match draw.choice(("replace", "insert", "remove", "repeat")):
                case "replace" if at < len(line):
                    line[at] = word
                case "insert":
                    line.insert(at, word)
                case "remove" if 1 < at < len(line):
                    del line[at]
                case "repeat" if at < len(line):
                    line.insert(at, line[at])
        return " ".join(repr(word[:60]) for word in line), lambda: self._run(line, folder)

    def _run(self, line: list[str], folder: Path) -> object:
        from click.exceptions import ClickException as ClickError
        from typer import _click

        from tuner.cli import app

        here = Path.cwd()
        os.chdir(folder)
        try:
            code = app(line, standalone_mode=False, prog_name="tuner")
        except (ClickError, _click.exceptions.ClickException) as error:
            raise Refused(error.format_message()[:2000]) from None
        finally:
            os.chdir(here)
            _remove(folder / "out")
        if code:
            raise Refused(f"exit code {code}")
        return code

    def restore(self, folder: Path) -> None:
        """Remove what a command line may have written."""
        _remove(folder / "out")


def all_kinds() -> tuple[Kind, ...]:
    """Return every kind of input, freshly made."""
    return (
        FileKind("study.yaml", _write_study, _read_study),
        FileKind("space", _write_space, _read_space),
        FileKind("cluster", _write_cluster, _read_cluster),
        FileKind("task.yaml", _write_card, _read_task),
        FileKind("JSONL rows", _write_task_rows, _read_task),
        FileKind("general text, plain", _write_plain, _reading_text("text.txt")),
        FileKind(
            "general text, JSON lines",
            _write_json_text,
            _reading_text("text.jsonl", "text.NDJSON", "text.json"),
        ),
        FileKind("canonical examples", _write_canonical, _read_canonical),
        FileKind("CounterFact", _write_counterfact, _read_counterfact),
        FileKind("zsRE", _write_zsre, _read_zsre),
        FileKind("SERAC questions", _write_questions, _read_questions),
        FileKind("SERAC claims", _write_claims, _read_claims),
        FileKind("SERAC topics", _write_topics, _read_topics),
        _bundle_kind("delta.json", "delta.json", Format.JSON),
        _bundle_kind("delta.safetensors", "delta.safetensors", Format.TENSORS),
        FileKind("study folder", _write_study_folder, _read_study_folder),
        _stream_kind(),
        _memory_kind(),
        ArgumentsKind(),
    )
