"""The ensemble editor: the small model learns, the large one is helped, all through the service."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from tests.support.command_line import Run
from tuner.bundle.bundle import Bundle, make_bundle
from tuner.bundle.export import export
from tuner.deltas.ensemble.ensemble_delta import EnsembleDelta
from tuner.deltas.senses import SenseDelta
from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus, GeneralText
from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.model import LanguageModel, load_model, share_tokens
from tuner.editing.task import ExampleSet, Task
from tuner.editors import find_editor
from tuner.editors.ensemble.editor import Ensemble
from tuner.editors.senses.editor import Senses
from tuner.errors import BaseMismatch, ConfigError, EditError
from tuner.evaluation.deviation.budget import Budget, Certificate, Verdict
from tuner.files.cache import Cache
from tuner.search.config import StudyConfig
from tuner.search.ray.worker import Confirm, Worker, WorkerSetup
from tuner.search.space_file import load_space
from tuner.search.storage.folder import StudyFolder
from tuner.testing.tiny_models import make_tiny_model, save_model
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Outcome, Rule, SplitName
from tuner.trial.result import TrialResult
from tuner.trial.run import run_editor

EPSILON = 1e-2
# In a random model it takes much to be heard.
SETTINGS = {"learning_rate": 0.9, "epochs": 6, "kl_weight": 0.0, "background_weight": 0.0}


@pytest.fixture
def evaluator(neox: LanguageModel, task: Task, general: GeneralText, tmp_path: Path) -> Evaluator:
    budget = Budget(epsilons=(1e-1, EPSILON))
    # No random model gets near the true threshold; this one parts the base from the edit.
    task = task.model_copy(update={"threshold": 4.8})
    return Evaluator(neox, task, budget, general, cache=Cache(tmp_path / "cache"))


@pytest.fixture
def result(evaluator: Evaluator, small: str) -> TrialResult:
    return run_editor(evaluator, Ensemble(small=small, **SETTINGS), seed=0)


@pytest.fixture
def bundle(evaluator: Evaluator, result: TrialResult) -> Bundle:
    made = make_bundle(evaluator.model, evaluator.task, result, EPSILON)
    assert made is not None
    return made


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """The folder of a Backpack with another tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["quite another text of other words"] * 20,
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    other = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    return save_model(make_tiny_model("backpack", other), tmp_path / "stranger")


@torch.no_grad()
def _logits(model: LanguageModel, delta: EnsembleDelta) -> torch.Tensor:
    ids = torch.arange(60, 84).reshape(2, 12)
    with model.edited(delta):
        logits: torch.Tensor = model.network(input_ids=ids).logits
    return logits


def test_the_small_model_learns_what_it_would_learn_alone(
    neox: LanguageModel, small: str, examples: ExampleSet, corpus: Corpus
) -> None:
    alone = Senses(**SETTINGS).edit(load_model(small), examples, Auxiliary(corpus), seed=0)
    beside = Ensemble(small=small, **SETTINGS).edit(neox, examples, Auxiliary(corpus), seed=0)
    for one, other in zip(alone, beside, strict=True):
        assert isinstance(other.delta, EnsembleDelta)
        assert other.delta.strength == 1.0
        assert other.training_loss == one.training_loss
        ours, theirs = other.delta.tensors(), one.delta.tensors()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trial_keeps_the_large_models_budget_by_its_strength(
    evaluator: Evaluator, result: TrialResult
) -> None:
    assert result.record.outcome is Outcome.COMPLETED
    assert result.record.editor == "ensemble"
    # As trained the edit is over this budget, so the rule has to lower the strength.
    assert result.record.epochs[-1].deviation.estimate > EPSILON
    answer = result.record.answer(EPSILON, Rule.FITTED)
    assert 0 < answer.alpha < 1
    assert answer.gain > 0
    assert answer.deviation.probably_within(EPSILON)
    delta = result.deltas[Rule.FITTED, EPSILON]
    assert isinstance(delta, EnsembleDelta)
    assert delta.strength == answer.alpha
    with evaluator.model.edited(delta):
        again = evaluator.success_meter(SplitName.VAL).scores()
    assert again == answer.scores
    assert again.exact is not None  # free generation ran through the ensemble too
    certificate = evaluator.certify(delta, EPSILON)
    assert certificate.deviation.tokens > 0
    assert certificate.verdict is not Verdict.OVER
    evaluator.check_unchanged()


def test_the_small_model_is_loaded_once_for_all_trials(evaluator: Evaluator, small: str) -> None:
    seen = {
        id(delta.ratio.small)
        for seed in (0, 1)
        for delta in run_editor(
            evaluator, Ensemble(small=small, **SETTINGS), seed=seed
        ).deltas.values()
        if isinstance(delta, EnsembleDelta)
    }
    assert seen == {id(evaluator.companions.load(small))}


def test_trials_do_not_depend_on_what_ran_before(evaluator: Evaluator, small: str) -> None:
    editor = Ensemble(small=small, **SETTINGS)
    first = run_editor(evaluator, editor, seed=0).record
    run_editor(evaluator, editor, seed=7)
    again = run_editor(evaluator, editor, seed=0).record
    assert again.model_dump_json(exclude={"seconds"}) == first.model_dump_json(exclude={"seconds"})


class Vandal(Editor):
    """Writes into the small model."""

    small: str

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        next(aux.companions.load(self.small).network.parameters()).data.add_(1.0)
        yield from ()


def test_a_changed_small_model_is_noticed(evaluator: Evaluator, small: str) -> None:
    run_editor(evaluator, Vandal(small=small), seed=0)
    with pytest.raises(EditError, match="changed outside"):
        evaluator.check_unchanged()


# What does not fit


def test_models_without_the_tokenizer_are_refused_before_any_trial(
    evaluator: Evaluator, stranger: str, small: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"tiny-gpt_neox and .*stranger must share a tokenizer"):
        run_editor(evaluator, Ensemble(small=stranger, **SETTINGS), seed=0)
    folder, worker = _study(evaluator, stranger, tmp_path)
    with pytest.raises(ConfigError, match="must share a tokenizer"):
        worker.run(0, {"learning_rate": 0.9})
    assert not folder.trial(0).exists()


def test_a_small_model_without_senses_is_refused(
    evaluator: Evaluator, neox: LanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Only a Backpack has senses"):
        run_editor(
            evaluator, Ensemble(small=save_model(neox, tmp_path / "neox"), **SETTINGS), seed=0
        )
    with pytest.raises(ConfigError, match="does not exist"):
        run_editor(evaluator, Ensemble(small=str(tmp_path / "absent"), **SETTINGS), seed=0)


def test_blocks_beyond_the_small_models_context_are_refused(
    neox: LanguageModel, small: str, examples: ExampleSet
) -> None:
    long = Corpus(name="long", blocks=torch.ones(8, 129, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"129 tokens, and .* reads 128 at most"):
        next(Ensemble(small=small, **SETTINGS).edit(neox, examples, Auxiliary(long), seed=0))


def test_batches_are_refused(small: str) -> None:
    with pytest.raises(ValidationError, match="batches = 1 must hold, but got 2"):
        Ensemble(small=small, batches=2, **SETTINGS)


def test_further_tokens_of_one_tokenizer_do_not_part_them(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["<|extratoken_1|>", "<|extratoken_2|>"])
    assert share_tokens(longer, tokenizer)
    assert share_tokens(tokenizer, longer)
    other = ("<|one|>", "<|two|>")
    parted = [copy.deepcopy(tokenizer) for _ in other]
    for one, token in zip(parted, other, strict=True):
        one.add_tokens([token])
    assert not share_tokens(*parted)


# On disk


def test_a_bundle_brings_the_small_model_back(
    bundle: Bundle, neox: LanguageModel, tmp_path: Path
) -> None:
    folder = bundle.save(tmp_path / "edit")
    companions = Companions()
    loaded = Bundle.load(folder, companions)
    assert loaded.manifest == bundle.manifest
    assert isinstance(loaded.delta, EnsembleDelta)
    assert isinstance(bundle.delta, EnsembleDelta)
    assert loaded.delta.strength == bundle.delta.strength < 1
    assert torch.equal(_logits(neox, loaded.delta), _logits(neox, bundle.delta))
    again = Bundle.load(folder, companions).delta
    assert isinstance(again, EnsembleDelta)
    assert again.ratio.small is loaded.delta.ratio.small


def test_another_small_model_under_the_same_name_is_refused(
    evaluator: Evaluator, small: str, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    model = load_model(small)
    save_model(model, moved)
    result = run_editor(evaluator, Ensemble(small=str(moved), **SETTINGS), seed=0)
    made = make_bundle(evaluator.model, evaluator.task, result, EPSILON)
    assert made is not None
    folder = made.save(tmp_path / "edit")
    with torch.no_grad():
        model.network.get_input_embeddings().weight.mul_(2)
    save_model(model, moved)
    with pytest.raises(BaseMismatch, match=r"brings along .*moved .* Put the same weights back"):
        Bundle.load(folder)


def test_a_manifest_must_name_the_small_model_of_an_ensemble_and_of_nothing_else(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = bundle.save(tmp_path / "edit")
    manifest = json.loads((folder / "delta.json").read_text())
    for change in ({"companion": None}, {"kind": "senses"}):
        (folder / "delta.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ConfigError, match=r"is damaged: .*companion"):
            Bundle.load(folder)
    # Bundles from before there were ensembles say nothing of a companion.
    before = {key: value for key, value in manifest.items() if key != "companion"}
    (folder / "delta.json").write_text(json.dumps(before | {"kind": "senses"}))
    assert isinstance(Bundle.load(folder).delta, SenseDelta)


def test_only_the_delta_itself_can_be_exported(
    bundle: Bundle, neox: LanguageModel, tmp_path: Path
) -> None:
    for format in ("peft", "merged"):
        with pytest.raises(ConfigError, match="export it as `delta`"):
            export(bundle, tmp_path / format, format=format, model=neox)
        assert not (tmp_path / format).exists()
    export(bundle, tmp_path / "delta", format="delta")
    assert Bundle.load(tmp_path / "delta").manifest == bundle.manifest


def test_a_bundle_is_copied_without_its_small_model(
    evaluator: Evaluator, small: str, tmp_path: Path, run: Run
) -> None:
    moved = tmp_path / "moved"
    save_model(load_model(small), moved)
    result = run_editor(evaluator, Ensemble(small=str(moved), **SETTINGS), seed=0)
    made = make_bundle(evaluator.model, evaluator.task, result, EPSILON)
    assert made is not None
    folder = made.save(tmp_path / "edit")
    away = moved.rename(tmp_path / "away")
    for name, given in (("named", ("--format", "delta")), ("chosen", ())):
        code, said, _ = run("export", str(folder), str(tmp_path / name), *given)
        assert (code, "the bundle itself" in said) == (0, True)
    # What it cannot be is said all the same, and no model is looked for.
    for format in ("peft", "merged"):
        code, _, said = run("export", str(folder), str(tmp_path / "no"), "--format", format)
        assert code == 2
        assert "export it as `delta`" in " ".join(said.split())
    with pytest.raises(ConfigError, match="does not exist"):
        Bundle.load(tmp_path / "named")
    away.rename(moved)
    for name in ("named", "chosen"):
        copied = Bundle.load(tmp_path / name)
        assert copied.manifest == made.manifest
        assert isinstance(copied.delta, EnsembleDelta)
        assert isinstance(made.delta, EnsembleDelta)
        assert torch.equal(
            _logits(evaluator.model, copied.delta), _logits(evaluator.model, made.delta)
        )


# In a study


def _study(evaluator: Evaluator, small: str, folder: Path) -> tuple[StudyFolder, Worker]:
    space = folder / "ensemble.yaml"
    fixed = {"epochs": 2, "kl_weight": 0.0, "background_weight": 0.0, "small": small}
    search = {"learning_rate": {"type": "float", "low": 1e-3, "high": 0.95, "log": True}}
    space.write_text(json.dumps({"editor": "ensemble", "fixed": fixed, "search": search}))
    setup = WorkerSetup(
        config=StudyConfig(task="capitals", space=str(space), budget=evaluator.budget),
        space=load_space(space),
        uid="one",
        root=folder / "study",
        make_evaluator=lambda _: evaluator,
    )
    return StudyFolder(folder / "study"), Worker(setup)


def test_a_worker_searches_and_confirms_ensembles(
    evaluator: Evaluator, small: str, tmp_path: Path
) -> None:
    folder, worker = _study(evaluator, small, tmp_path)
    worker.run(0, {"learning_rate": 0.9})
    found = folder.read_trial("one", 0, {"learning_rate": 0.9})
    assert found is not None
    assert found.record is not None
    assert found.record.outcome is Outcome.COMPLETED
    worker.perform(Confirm(epsilon=EPSILON, number=0, confidence=0.95))
    text = folder.confirmation(EPSILON, 0).read_text()
    assert Certificate.model_validate_json(text).deviation.tokens > 0


def test_the_shipped_space_searches_what_senses_search() -> None:
    (ensemble,), (senses,) = load_space("ensemble").branches, load_space("senses").branches
    assert ensemble.search == senses.search
    assert ensemble.fixed == senses.fixed
    assert find_editor("ensemble").model_fields["small"].default == "builtin:backpack"


# From the command line


def test_edit_refuses_another_tokenizer_with_exit_code_2(
    run: Run, small: str, tmp_path: Path
) -> None:
    code, _, said = run(
        *(
            "edit",
            "--task",
            "country_capital",
            "--editor",
            "ensemble",
            "--out",
            str(tmp_path / "e"),
        ),
        *("--set", f"small={small}", "--set", "learning_rate=0.01", "--budget", "0.1"),
    )
    assert code == 2
    assert "must share a tokenizer" in " ".join(said.split())
    assert not (tmp_path / "e").exists()
