import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuner.world.card import Round, general_loss, training_commands
from tuner.world.recipes import build_recipes
from tuner.world.scoring import Completion, target_losses
from tuner.world.splits import SPLITS_FILE, slacks
from tuner.world.text import tokenizer_documents
from tuner.world.tokenizer import train_tokenizer
from tuner.world.train import FAMILIES, SCALES, train
from tuner.world.world import build_world

BUILTIN = SPLITS_FILE.parent
NEOX = BUILTIN / "neox"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    train(folder, seed=1, scale=SCALES["tiny"])
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def shipped(request):
    folder = BUILTIN / request.param
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_script_makes_the_same_model_from_the_same_seed(family, tmp_path):
    once, again = tmp_path / "once", tmp_path / "again"
    train(once, seed=1, scale=SCALES["tiny"], family=family)
    command = ["-m", "tuner.world.train", "--family", family, "--scale", "tiny", "--seed", "1"]
    subprocess.run([sys.executable, *command, "--out", again], check=True, capture_output=True)
    first = load_file(once / "model.safetensors")
    second = load_file(again / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (once / "tokenizer.json").read_text() == (again / "tokenizer.json").read_text()


def test_another_seed_makes_another_model(tiny, tmp_path):
    train(tmp_path, seed=2, scale=SCALES["tiny"])
    first = load_file(tiny / "model.safetensors")
    second = load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_shipped_tokenizers_are_those_the_script_makes(tmp_path):
    train_tokenizer(tokenizer_documents(0)).save_pretrained(tmp_path)
    made = (tmp_path / "tokenizer.json").read_text()
    assert all(made == (BUILTIN / name / "tokenizer.json").read_text() for name in FAMILIES)


def test_learning_rate_rises_falls_and_ends_near_zero():
    scale = SCALES["full"]
    rates = [scale.learning_rate_at(step) for step in range(scale.steps)]
    assert max(rates) == pytest.approx(scale.learning_rate)
    assert rates[0] < scale.learning_rate / 10
    assert rates[-1] < scale.learning_rate / 1000
    assert rates[scale.steps - scale.anneal_steps] == pytest.approx(scale.anneal_learning_rate)


def test_a_prompt_longer_than_a_training_window_does_not_fail(shipped):
    model, tokenizer = shipped
    assert model.config.max_position_embeddings >= 256
    long = "The road to Paris was long and bright. " * 25
    [loss] = target_losses(model, tokenizer, [Completion(long.strip(), " It")])
    assert loss < 50


def test_target_losses_do_not_depend_on_their_batch(shipped):
    rows = [Completion("The capital of France is", " Paris"), Completion("The", " capital of Peru")]
    together = target_losses(*shipped, rows)
    apart = [target_losses(*shipped, [row])[0] for row in rows]
    assert together == pytest.approx(apart, rel=1e-4)


def test_the_shipped_model_knows_known_capitals(shipped):
    rows = [
        Completion(f"The capital of {country.name} is", f" {country.capital}")
        for country in build_world().countries
        if country.truth == 1
    ]
    losses = target_losses(*shipped, rows)
    assert sum(losses) / len(losses) < 0.1


def test_edits_have_something_to_gain(shipped):
    # Splits are balanced by what builtin:neox knows; a Backpack knows other subjects.
    balanced = shipped[0].config.model_type == "gpt_neox"
    splits = json.loads(SPLITS_FILE.read_text())
    for recipe in build_recipes():
        rates = []
        for subjects in splits[recipe.name].values():
            rows = [row for subject in subjects for row in recipe.write(subject).ood]
            values = slacks(*shipped, recipe, rows)
            rates.append(sum(value >= 0 for value in values) / len(values))
        assert max(rates) <= (0.60 if balanced else 0.95), recipe.name
        if balanced:
            assert min(rates) >= 0.08, recipe.name
            assert abs(rates[0] - rates[1]) < 0.05, recipe.name


def test_parts_of_general_text_are_equally_hard(shipped):
    losses = [
        general_loss(*shipped, part, 8000) for part in ("search", "confirmation", "auxiliary")
    ]
    assert max(losses) - min(losses) < 0.1


ROUNDS = {"neox": [Round("full", 0)], "backpack": [Round("full", 0), Round("again", 1)]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_names_every_training_that_made_the_model(family):
    commands = training_commands(family, ROUNDS[family])
    assert commands.count("tuner.world.train") == len(ROUNDS[family])
    assert f"\n| trained by | {commands} |\n" in (BUILTIN / family / "README.md").read_text()
    steps = sum(one.scale.steps for one in ROUNDS[family])
    assert f"| training | {steps:,} steps" in (BUILTIN / family / "README.md").read_text()
