import json
from itertools import combinations

import pytest
import yaml

from tests.support.clone import ROOT
from tuner.world.recipes import build_recipes
from tuner.world.splits import read_splits
from tuner.world.tasks import task_files

DATASETS = ROOT / "datasets"
RECIPES = {recipe.name: recipe for recipe in build_recipes()}
KINDS = ("canonical", "ood", "hard_negatives", "related")


def read(task, split, kind):
    lines = (DATASETS / task / split / f"{kind}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("task", RECIPES)
def test_files_on_disk_are_what_the_generator_writes(task):
    files = task_files(RECIPES[task], read_splits()[task])
    assert len(files) == 1 + 2 * len(KINDS)
    for path, content in files.items():
        assert (DATASETS / task / path).read_text() == content, path


@pytest.mark.parametrize("task", RECIPES)
def test_splits_share_nothing_and_leave_nothing_out(task):
    splits = read_splits()[task]
    assert sorted(splits["val"] + splits["test"]) == sorted(RECIPES[task].subjects)
    for kind in KINDS:
        val, test = (
            {json.dumps(row, sort_keys=True) for row in read(task, split, kind)}
            for split in ("val", "test")
        )
        assert not val & test


@pytest.mark.parametrize("task", RECIPES)
def test_ood_and_hard_negatives_are_not_trained_on(task):
    for split in ("val", "test"):
        prompts = [{row["prompt"] for row in read(task, split, kind)} for kind in KINDS[:3]]
        for some, others in combinations(prompts, 2):
            assert not some & others


@pytest.mark.parametrize("task", RECIPES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_rows_are_well_formed_and_many(task, split):
    card = yaml.safe_load((DATASETS / task / "task.yaml").read_text())
    assert list(card) == ["name", "description", "loss", "threshold", "source", "licence"]
    assert isinstance(card["threshold"], float)
    at_least = {"canonical": 20, "ood": 240, "hard_negatives": 60, "related": 30}
    for kind, count in at_least.items():
        rows = read(task, split, kind)
        assert len(rows) >= count
        for row in rows:
            if kind == "related":
                assert set(row) == {"text"}
                continue
            assert set(row) <= {"prompt", "target", "contrast", "subject", "paraphrases"}
            assert row["target"].startswith(" ")
            assert not row["prompt"].endswith(" ")
            assert row["subject"] in row["prompt"]
            assert ("contrast" in row) == (card["loss"] in ("balance", "prefer"))


def test_no_python_file_makes_the_data_folder_a_package():
    assert not list(DATASETS.rglob("*.py"))
