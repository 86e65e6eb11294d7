from pathlib import Path

import pytest
import sqlalchemy
from pydantic import SecretStr, ValidationError

from tuner.errors import ConfigError
from tuner.search.check import check_study
from tuner.search.config import StudyConfig, check_unchanged, load_study
from tuner.search.space import Space
from tuner.search.space_file import load_space
from tuner.search.storage.database import Database
from tuner.search.study import Study


def test_a_study_is_named_after_its_task_and_space() -> None:
    assert StudyConfig(task="country_capital").name == "country_capital-lora"
    assert StudyConfig(task="a/b", space="x/y.yaml").name == "b-y"


def test_the_loosest_budget_steers() -> None:
    assert StudyConfig(task="t").target_epsilon == 1e-3
    assert StudyConfig(task="t", epsilon=1e-4).target_epsilon == 1e-4
    with pytest.raises(ValidationError, match="one of the budgets"):
        StudyConfig(task="t", epsilon=0.5)


def test_secrets_are_never_shown() -> None:
    config = StudyConfig.model_validate({"task": "t", "storage": "postgresql://me:hush@host/db"})
    assert "hush" not in repr(config)
    assert "hush" not in config.model_dump_json()
    assert "storage" not in config.identity


def test_a_continued_study_may_grow_but_not_change() -> None:
    before = StudyConfig(task="t", trials=10, workers=1)
    check_unchanged(
        before.identity, StudyConfig(task="t", trials=20, workers=2).identity, before.name
    )
    other = StudyConfig(task="t", seed=1, rule="best", name=before.name)
    with pytest.raises(ConfigError) as error:
        check_unchanged(before.identity, other.identity, before.name)
    assert "rule: was 'fitted', is 'best'" in str(error.value)
    assert "seed: was 0, is 1" in str(error.value)


def test_yaml_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("editor: lora\n")
    (tmp_path / "study.yaml").write_text("task: country_capital\nspace: ./space.yaml\n")
    config = load_study(tmp_path / "study.yaml")
    assert Path(config.space) == tmp_path / "space.yaml"
    assert config.task == "country_capital"


def test_check_reports_everything_at_once(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("editor: lora\nfixed: {rank: 0}\n")
    study = tmp_path / "study.yaml"
    study.write_text("task: country_capitol\nspace: ./space.yaml\ntrials: 0\nseeds: 3\n")
    problems = check_study(study)
    text = "\n".join(problems)
    assert f"{study}:3: trials" in text
    assert f"{study}:4: seeds" in text
    assert f"{study}:1: " in text
    assert "country_capital" in text
    study.write_text("task: country_capital\nspace: ./space.yaml\ngeneral: nowhere.txt\n")
    problems = check_study(study)
    assert any("space.yaml:2: rank" in problem for problem in problems)
    assert any("space.yaml" in problem and "learning_rate" in problem for problem in problems)
    assert any(f"{study}:3: " in problem and "nowhere.txt" in problem for problem in problems)
    study.write_text("task: country_capital\nspace: lora\n")
    assert check_study(study) == []


def test_a_study_may_add_constraints(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "task: country_capital\nconstraints:\n"
        "  - {metric: hard_negative_loss, rise: 0.05}\n"
        "  - {metric: exact, drop: 0.05}\n"
    )
    config = load_study(study)
    assert [one.name for one in config.constraints] == ["hard_negative_loss.rise", "exact.drop"]
    assert StudyConfig.model_validate(config.model_dump(exclude_unset=True)) == config
    study.write_text(
        "task: country_capital\nconstraints:\n"
        "  - {metric: hard_negative_loss, drop: 0.05}\n"
        "  - {metric: sucess, floor: 0.05}\n"
    )
    first, second = check_study(study)
    assert first.startswith(f"{study}:3: constraints.0: hard_negative_loss needs exactly one of")
    assert second.startswith(f"{study}:4: constraints.1.metric: ")


def test_constraints_are_part_of_what_a_study_is() -> None:
    rise = {"metric": "hard_negative_loss", "rise": 0.05}
    before = StudyConfig.model_validate({"task": "t", "constraints": [rise]})
    check_unchanged(before.identity, before.identity, before.name)
    other = StudyConfig.model_validate({"task": "t", "constraints": [{**rise, "rise": 0.1}]})
    with pytest.raises(ConfigError, match=r"constraints: was \[.*'rise': 0.05.*, is .*'rise': 0.1"):
        check_unchanged(before.identity, other.identity, before.name)
    none = StudyConfig(task="t")
    with pytest.raises(ConfigError, match="constraints: was None, is"):
        check_unchanged(none.identity, other.identity, none.name)
    assert "constraints" not in none.identity  # as in studies from before there were any


def test_the_number_of_edits_is_part_of_what_a_study_is() -> None:
    few = StudyConfig(task="qa_world", edits=5)
    with pytest.raises(ConfigError, match="edits: was None, is 5"):
        check_unchanged(StudyConfig(task="qa_world").identity, few.identity, few.name)
    assert "edits" not in StudyConfig(task="qa_world").identity  # as in studies from before


def test_a_study_makes_as_many_edits_as_it_is_asked_for(tmp_path: Path) -> None:
    study = Study(StudyConfig(task="qa_world", edits=25), folder=tmp_path)
    assert study.task.simultaneous_edits == 25
    with pytest.raises(ConfigError, match="76 edits at once need as many canonical rows"):
        Study(StudyConfig(task="qa_world", edits=76), folder=tmp_path)


def test_a_task_without_what_the_space_needs_is_found_before_the_search(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("task: country_capital\nspace: pure_finetuning\n")
    (problem,) = check_study(path)
    assert "study.yaml:2:" in problem
    assert "the task 'country_capital' has none" in problem
    with pytest.raises(ConfigError, match="needs true facts"):
        Study(StudyConfig(task="country_capital", space="pure_finetuning"), folder=tmp_path)
    path.write_text("task: counterfact_world\nspace: pure_finetuning\n")
    assert check_study(path) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("storage: mysql://u:hush@host/db", "must begin with postgresql:// or sqlite://"),
        ("storage: postgresql://u:hush@host:port/db", "must be a URL"),
        ("storge: postgresql://u:hush@host/db", "storge"),
        ("device: mps", "device"),
        ("trials: 1e20", "trials"),
        ("budget: {epsilons: [1e-320]}", "epsilon < 1"),
        ("gpus_per_worker: .inf", "finite"),
        ("general: .", "needs files named"),
        ("general: none.txt", "does not exist"),
    ],
)
def test_check_finds_what_no_search_could_run_and_shows_no_password(
    line: str, said: str, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"task: country_capital\n{line}\n")
    (problem,) = check_study(study)
    assert problem.startswith(f"{study}:2: ")
    assert said in problem
    assert "hush" not in problem


def test_a_definition_from_when_numbers_were_text_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "editor: lora\nfixed: {learning_rate: 1e-4}\n"
        "search:\n  rank: {type: int, low: 2, high: 8}\n"
    )
    now = load_space(path).definition
    before = {"mine": {**now["mine"], "fixed": {"learning_rate": "1e-4"}}}
    assert Space.definition_from_before(before) == now


def test_relative_paths_of_flags_start_at_the_working_directory_and_those_of_a_file_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "mödel").mkdir()
    study = tmp_path / "studies" / "study.yaml"
    study.write_text("task: country_capital\nmodel: ../mödel\ngeneral: text.txt\n")
    monkeypatch.chdir(tmp_path)
    config = load_study(Path("studies/study.yaml"), {"general": "my text.txt"})
    assert config.model == str(tmp_path / "mödel")
    assert config.general == str(tmp_path / "my text.txt")
    assert config.spelled("model") == "../mödel"
    assert config.spelled("general") == "my text.txt"
    assert load_study(study).general == str(tmp_path / "studies" / "text.txt")
    direct = StudyConfig(task="country_capital", model="mödel", general="text.txt")
    assert direct.model == str(tmp_path / "mödel")
    assert direct.general == str(tmp_path / "text.txt")


def test_flags_complete_a_study_file(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("space: rome\nbudget: {epsilons: [0.1], confidence: 0.9}\n")
    config = load_study(study, {"task": "country_capital", "budget": {"epsilons": [0.01]}})
    assert config.name == "country_capital-rome"
    assert (config.budget.epsilons, config.budget.confidence) == ((0.01,), 0.9)
    with pytest.raises(ConfigError, match=r"^trials: Input should be greater than 0. Got 0.$"):
        load_study(study, {"task": "country_capital", "trials": 0})


def test_a_name_with_a_path_s_form_is_never_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "org" / "name").mkdir(parents=True)
    for id, expected in {
        "gpt2": tmp_path / "gpt2",
        "org/name": tmp_path / "org" / "name",
        "./absent": tmp_path / "absent",
        "a/b/c": tmp_path / "a" / "b" / "c",
        "absent/": tmp_path / "absent",
    }.items():
        assert StudyConfig(task="t", model=id).model == str(expected)
    assert StudyConfig(task="t", model="org/other").model == "org/other"
    assert StudyConfig(task="t", model="builtin:neox").model == "builtin:neox"


def test_a_hub_id_of_a_study_file_is_not_read_as_a_folder_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "gpt2").mkdir(parents=True)
    study = tmp_path / "study.yaml"
    study.write_text("task: country_capital\nmodel: gpt2\n")
    assert load_study(study).model == "gpt2"
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"study.yaml:2: model: 'gpt2' is a hub id, since .*gpt2"):
        load_study(study)


@pytest.mark.parametrize(
    ("task", "space", "name"),
    [
        ("./facts.v1", "lora", "facts.v1-lora"),
        ("./facts.v2/", "my.space.yaml", "facts.v2-my.space"),
        ("my facts", "lora", "my-facts-e9177c-lora"),
        ("my-facts", "lora", "my-facts-lora"),
        ("./größe", "lora", "gr-e-d353a2-lora"),
        ("./東京", "lora", "130016-lora"),
        ("./_hidden", "lora", "hidden-7a1f9c-lora"),
    ],
)
def test_derived_names_are_legal_and_distinct(task: str, space: str, name: str) -> None:
    assert StudyConfig(task=task, space=space).name == name


def test_a_study_of_the_task_here_is_called_by_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "facts" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "facts" / "below")
    assert StudyConfig(task=".").name == "below-lora"
    assert StudyConfig(task="..").name == "facts-lora"


@pytest.mark.parametrize("name", ["my facts", "größe", "../up", ".", "a/b", "x\n", "x" * 201])
def test_a_name_that_is_no_folder_s_is_refused_in_words(name: str) -> None:
    with pytest.raises(ValidationError, match="must begin with a letter or a digit, hold only"):
        StudyConfig(task="country_capital", name=name)


def test_a_study_without_a_task_complains_of_that_alone(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("space: lora\n")
    assert check_study(study) == [f"{study}:1: task: Field required."]


def test_a_ledger_s_file_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "q?mark 50%25"
    place.mkdir()
    monkeypatch.chdir(place)
    config = StudyConfig.model_validate({"task": "country_capital", "storage": "sqlite:///l.db"})
    assert config.storage is not None
    with sqlalchemy.create_engine(config.storage.get_secret_value()).connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (x int)"))
    assert [path.name for path in place.iterdir()] == ["l.db"]
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    server = "postgresql://me:h%40sh@host/db"
    config = StudyConfig.model_validate({"task": "country_capital", "storage": server})
    assert config.storage is not None
    assert config.storage.get_secret_value() == server
    with pytest.raises(ConfigError, match="must name a file"):
        Database.at(SecretStr("sqlite://"))
