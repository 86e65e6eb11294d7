"""A study keeps to the models that stood beside its base when it began."""

import json
from pathlib import Path

import pytest
import torch

from tuner.editing.corpus import GeneralText
from tuner.editing.model import LanguageModel, load_model
from tuner.editing.task import Split, Task
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Budget
from tuner.files.cache import Cache
from tuner.search.config import StudyConfig
from tuner.search.ray.worker import Confirm, Worker, WorkerSetup
from tuner.search.space_file import load_space
from tuner.search.storage.folder import StudyFolder
from tuner.testing.tiny_models import save_model
from tuner.trial.evaluator import Evaluator

SETTINGS: dict[str, dict[str, float]] = {
    "ensemble": {"epochs": 1, "kl_weight": 0.0, "background_weight": 0.0},
    "serac": {"classifier_steps": 2, "counterfactual_steps": 2},
    "retrieve_and_prompt": {"classifier_steps": 2},
}
SEARCHED = {"ensemble": "learning_rate"}


def _rewrite(folder: str) -> None:
    """Put other weights under the same name."""
    model = load_model(folder)
    with torch.no_grad():
        model.network.get_input_embeddings().weight.mul_(2)
    save_model(model, Path(folder))


class _World:
    """A study of which each worker starts in a fresh process, as after a kill."""

    def __init__(self, make_evaluator: object, space: Path, folder: Path) -> None:
        self._make_evaluator = make_evaluator
        self._space = space
        self.folder = StudyFolder(folder)

    def worker(self) -> Worker:
        setup = WorkerSetup(
            config=StudyConfig(task="capitals", space=str(self._space)),
            space=load_space(self._space),
            uid="one",
            root=self.folder.root,
            make_evaluator=self._make_evaluator,  # type: ignore[arg-type]
        )
        return Worker(setup)


def _world(
    editor: str,
    models: dict[str, object],
    neox: LanguageModel,
    task: Task,
    training: Split,
    general: GeneralText,
    folder: Path,
) -> _World:
    searched = SEARCHED.get(editor, "threshold")
    given = {key: value for key, value in models.items() if isinstance(value, str)}
    choices = {key: value for key, value in models.items() if not isinstance(value, str)}
    space = folder / "space.yaml"
    content = {
        "editor": editor,
        "fixed": {**SETTINGS[editor], **given},
        "search": {searched: {"type": "float", "low": 0.1, "high": 0.9}, **choices},
    }
    space.write_text(json.dumps(content))
    cache = Cache(folder / "cache")
    task = task.model_copy(update={"train": training})

    def make_evaluator(_: StudyConfig) -> Evaluator:
        return Evaluator(neox, task, Budget(epsilons=(0.1,)), general, cache=cache)

    return _World(make_evaluator, space, folder / "study")


@pytest.mark.parametrize(
    ("editor", "field"),
    [
        ("ensemble", "small"),
        ("serac", "classifier"),
        ("serac", "counterfactual"),
        ("retrieve_and_prompt", "classifier"),
    ],
)
def test_a_resumed_study_refuses_other_weights_beside_its_base(
    editor: str,
    field: str,
    neox: LanguageModel,
    backpack: LanguageModel,
    task: Task,
    training: Split,
    general: GeneralText,
    tmp_path: Path,
) -> None:
    model = backpack if editor == "ensemble" else neox
    models: dict[str, object] = {field: save_model(model, tmp_path / field)}
    if editor == "serac":
        other = "counterfactual" if field == "classifier" else "classifier"
        models[other] = save_model(model, tmp_path / other)
    world = _world(editor, models, neox, task, training, general, tmp_path)
    searched = SEARCHED.get(editor, "threshold")
    world.worker().run(0, {searched: 0.5})
    assert world.folder.trial(0).is_dir()
    # Unchanged, it goes on.
    world.worker().run(1, {searched: 0.6})
    assert world.folder.trial(1).is_dir()
    _rewrite(str(models[field]))
    refusal = rf"began with other weights of .*{field} .*Put the same weights back, or give"
    with pytest.raises(ConfigError, match=refusal):
        world.worker().run(2, {searched: 0.7})
    assert not world.folder.trial(2).exists()
    with pytest.raises(ConfigError, match=refusal):
        world.worker().perform(Confirm(epsilon=0.1, number=0, confidence=0.95))


def test_each_of_several_small_models_is_kept_to(
    neox: LanguageModel,
    backpack: LanguageModel,
    task: Task,
    training: Split,
    general: GeneralText,
    tmp_path: Path,
) -> None:
    folders = [save_model(backpack, tmp_path / name) for name in ("one", "two")]
    choice = {"small": {"type": "categorical", "choices": folders}}
    world = _world("ensemble", dict(choice), neox, task, training, general, tmp_path)
    world.worker().run(0, {"learning_rate": 0.5, "small": folders[0]})
    _rewrite(folders[1])
    with pytest.raises(ConfigError, match=r"began with other weights of .*two"):
        world.worker().run(1, {"learning_rate": 0.5, "small": folders[0]})


def test_a_study_from_before_there_were_claims_goes_on(
    neox: LanguageModel,
    backpack: LanguageModel,
    task: Task,
    training: Split,
    general: GeneralText,
    tmp_path: Path,
) -> None:
    models: dict[str, object] = {"small": save_model(backpack, tmp_path / "small")}
    world = _world("ensemble", models, neox, task, training, general, tmp_path)
    world.worker().run(0, {"learning_rate": 0.5})
    claims = list(world.folder.companions.iterdir())
    assert len(claims) == 1
    claims[0].unlink()
    world.worker().run(1, {"learning_rate": 0.6})
    assert list(world.folder.companions.iterdir()) == claims
