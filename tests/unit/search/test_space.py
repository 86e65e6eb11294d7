import json
from pathlib import Path

import optuna
import pytest

from tuner.editors import editor_names, find_editor
from tuner.errors import ConfigError
from tuner.search.dimensions import as_entry, extremes, read_dimension
from tuner.search.space import EDITOR, Space
from tuner.search.space_file import find_space_file, load_space, space_names


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", space_names())
def test_shipped_spaces_draw_editors(name: str) -> None:
    space = load_space(name)
    for seed in range(20):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        trial = study.ask()
        editor = space.build(space.draw(trial))
        assert editor.name() in editor_names()
        assert trial.distributions == space.active(trial.params)
        assert space.build(trial.params) == editor


def test_every_editor_has_a_space() -> None:
    assert set(editor_names()) <= set(space_names())


def test_few_hyperparameters_are_searched() -> None:
    for name in editor_names():
        assert 1 <= len(load_space(name).distributions) <= 6


def test_fixed_values_reach_the_editor(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine",
        "editor: lora\nfixed: {epochs: 3, learning_rate: 1e-4}\n"
        "search:\n  rank: {type: int, low: 2, high: 2000, log: true}\n",
    )
    editor = load_space(path).build({"rank": 5})
    assert editor == find_editor("lora")(epochs=3, learning_rate=1e-4, rank=5)


def test_several_editors_are_a_conditional_space() -> None:
    space = load_space("both")
    assert space.conditional
    assert set(space.distributions[EDITOR].choices) == {"lora", "full_finetuning"}
    active = space.active({EDITOR: "lora"})
    assert {name.split(".")[0] for name in active if name != EDITOR} == {"lora"}


def test_all_problems_are_reported_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "bad",
        "editor: lora\n"  # 1
        "fixed:\n"  # 2
        "  epochs: 0\n"  # 3: the editor wants at least one
        "  lora_alfa: 8\n"  # 4: misspelt
        "search:\n"  # 5
        "  learning_rate: {type: float, low: 1.0e-2, high: 1.0e-4, log: true}\n"  # 6
        "  rank:\n"  # 7
        "    type: int\n"  # 8
        "    low: 0\n"  # 9: below the editor's least
        "    high: 64\n"  # 10
        "  width: {type: float, low: 0.0, high: 0.9, log: true}\n"  # 11
        "  kl_weight: {type: gaussian, low: 0}\n",  # 12
    )
    with pytest.raises(ConfigError) as error:
        load_space(path)
    lines = str(error.value).splitlines()
    where = [int(line.split(":")[1]) for line in lines]
    assert where == [3, 4, 6, 9, 11, 12]
    assert "lora_alpha" in lines[1]
    assert "low < high" in lines[2]
    assert "low > 0" in lines[4]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("editor: lorra\nsearch: {}\n", ":1: No editor is called 'lorra'. Did you mean 'lora'?"),
        ("search: {}\n", "`editor`"),
        ("editor: lora\n", "'learning_rate': it must be fixed or searched"),
        (
            "editor: lora\nfixed: {learning_rate: 1e-3, rank: 4}\n"
            "search:\n  rank: {type: int, low: 1, high: 4}\n",
            ":4: 'rank' is both fixed and searched",
        ),
        (
            "editor: lora\nfixed: {learning_rate: 1e-3}\n"
            "search:\n  paper_exact: {type: categorical, choices: [true, true]}\n",
            "must differ",
        ),
        ("editors: [lora]\n", ":1: editors"),
        ("editors: [lora, lorra]\n", "Did you mean 'lora'?"),
        ("editors: [lora, lora]\n", "stands twice"),
        ("editors: [lora, full_finetuning]\nsearch: {a: 1}\n", "their own files"),
        ("editors: [lora, ./bad.yaml]\n", "contains itself"),
        ("editor: lora\neditor: lora\n", "stands twice"),
        ("editor: lora\nsurch: {}\n", ":2: surch"),
        ("", "the file is empty"),
        ("3\n", "must be a mapping of keys to values"),
        (
            "editor: lora\nfixed: {learning_rate: 1e-3}\n"
            "search:\n  rank: {type: float, low: 2, high: 8}\n",
            ":4: not every value is taken: rank: Input should be a valid integer",
        ),
        (
            "editor: lora\nfixed: {learning_rate: 1e-3}\n"
            "search:\n  kl_weight: {type: categorical, choices: [0.5, .inf]}\n",
            ":4: search.kl_weight: `choices` must be finite",
        ),
        (
            "editor: lora\n"
            "search:\n  learning_rate: {type: float, low: 0, high: 1, step: 1e-300}\n",
            "too small for this range",
        ),
        (
            "editor: lora\nfixed: {learning_rate: 1e-3}\n"
            f"search:\n  rank: {{type: int, low: 1, high: {10**30}}}\n",
            "search.rank.high",
        ),
    ],
)
def test_complaints(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_space(write(tmp_path, "bad", text))
    assert complaint in str(error.value)


def test_a_choice_is_a_number_where_its_field_is_one(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine",
        "editor: lora\nsearch:\n"
        "  learning_rate: {type: categorical, choices: [1e-4, '1e-3', 0.01]}\n"
        "  maps: {type: categorical, choices: [mlp, all]}\n",
    )
    found = load_space(path).distributions
    assert found["learning_rate"].choices == (1e-4, 1e-3, 0.01)
    assert all(type(one) is float for one in found["learning_rate"].choices)
    assert found["maps"].choices == ("mlp", "all")


def test_unknown_spaces_get_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        find_space_file("lor")


def test_models_and_modules_that_a_space_names_are_found_beside_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "räume hier"
    (place / "klein").mkdir(parents=True)
    (place / "hidden_beside_the_space.py").write_text(
        "from tuner.editors.lora import Lora as Mine\n"
    )
    (place / "ensemble.yaml").write_text(
        "editor: ensemble\nfixed: {small: ./klein}\n"
        "search:\n  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}\n"
    )
    (place / "serac.yaml").write_text(
        "editor: serac\nsearch:\n"
        "  classifier: {type: categorical, choices: [klein, 'builtin:neox', org/name]}\n"
    )
    monkeypatch.chdir(tmp_path)
    small = str(place / "klein")
    space = load_space("räume hier/ensemble.yaml")
    assert space.branches[0].fixed["small"] == small
    assert space.model_folders == (small,)
    (branch,) = load_space(place / "serac.yaml").branches
    assert extremes(branch.search["classifier"]) == {
        "choices.0": small, "choices.1": "builtin:neox", "choices.2": "org/name",
    }  # fmt: skip
    assert find_editor("hidden_beside_the_space:Mine", place) is find_editor("lora")


def test_spaces_that_contain_each_other_by_other_spellings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("editors: [./b.yaml, lora]\n")
    (tmp_path / "b.yaml").write_text(f"editors: [../{tmp_path.name}/a.yaml, rome]\n")
    with pytest.raises(ConfigError, match="contains itself"):
        load_space(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "float", "low": 1e-5, "high": 1e-2, "log": True, "step": None},
        {"type": "float", "low": 0.1, "high": 0.7, "log": False, "step": 0.1},
        {"type": "int", "low": 2, "high": 32, "log": True, "step": 1},
        {"type": "int", "low": 0, "high": 12, "log": False, "step": 3},
        {"type": "categorical", "choices": ("mlp", 2, 0.5, None, True)},
    ],
)
def test_a_dimension_is_optunas_distribution_and_an_entry_again(entry: dict[str, object]) -> None:
    dimension = read_dimension(entry)
    assert isinstance(dimension, optuna.distributions.BaseDistribution)
    assert as_entry(dimension) == entry
    assert list(as_entry(dimension)) == list(entry)


@pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")
def test_a_range_whose_last_step_is_just_below_its_end_continues_old_studies(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path,
        "mine",
        "editor: lora\nfixed: {learning_rate: 1e-3}\n"
        "search:\n  kl_weight: {type: float, low: 0.0, high: 1.0, step: 0.3333333}\n",
    )
    now = json.loads(json.dumps(load_space(path).definition))
    before = json.loads(json.dumps(now))
    before["mine"]["search"]["kl_weight"]["high"] = 1.0  # what the file says
    assert before != now
    assert Space.definition_from_before(before) == now
