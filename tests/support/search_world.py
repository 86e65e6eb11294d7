"""A world so small that a whole study takes seconds: model, task, text and space as files.

Everything that a study does runs for real on it. Run as a program it drives one study, so that a
test can kill the process: `python search_world.py WORLD STUDIES TRIALS`.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from tuner.evaluation.deviation.budget import Budget
from tuner.search import Study, StudyConfig, StudyResult

T = TypeVar("T", bound=Callable[..., Any])

COLOURS = ("red", "blue", "green", "white", "black", "grey")
THINGS = ("car", "house", "door", "hat", "boat", "cup", "lamp", "coat", "chair", "book", "pen")
FRAMES = ("The {} is", "My {} was", "Her {} seems", "One {} is")

SPACE = """\
editor: lora
fixed: {epochs: 6, batch_size: 2, lora_alpha: 8.0}
search:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  rank: {type: int, low: 1, high: 4}
  width: {type: float, low: 0.2, high: 0.9}
"""

CARD = """\
name: tiny
description: Everything is blue.
loss: likelihood
threshold: 1.5
source: made up
licence: Apache-2.0
"""


def make_world(folder: Path) -> Path:
    """Write the files of the world into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    documents = [
        " ".join(
            f"{draw.choice(FRAMES).format(draw.choice(THINGS))} {draw.choice(COLOURS)} ."
            for _ in range(12)
        )
        for _ in range(400)
    ]
    (folder / "general.txt").write_text("\n".join(documents), encoding="utf-8")
    _make_model(folder / "model", documents)
    _make_task(folder / "task")
    (folder / "space.yaml").write_text(SPACE, encoding="utf-8")
    return folder


def tiny_config(world: Path, trials: int, **changes: object) -> StudyConfig:
    """Return a study of the tiny world, with one worker unless told otherwise."""
    settings: dict[str, object] = {
        "name": "tiny",
        "model": str(world / "model"),
        "device": "cpu",
        "task": str(world / "task"),
        "general": str(world / "general.txt"),
        "space": str(world / "space.yaml"),
        "trials": trials,
        "workers": 1,
        "budget": Budget(epsilons=(1e-2, 3e-3, 1e-3)),
        "confirm_top": 2,
        "test_seeds": 2,
    }
    return StudyConfig.model_validate({**settings, **changes})


def drive(world: Path, studies: Path, trials: int) -> StudyResult:
    """Run the tiny study, or continue it."""
    return Study(tiny_config(world, trials), folder=studies).run()


def by_value(made: T) -> T:
    """Let Ray send the function's module along: workers cannot import a test."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[made.__module__])
    return made


def _make_model(folder: Path, documents: list[str]) -> None:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        documents, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPTNeoXForCausalLM(config)
        # A few steps, so that general text has something to lose.
        ids = torch.tensor([tokenizer(text)["input_ids"][:48] for text in documents[:200]])
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for step in range(40):
            batch = ids[(step * 20) % 200 :][:20]
            network(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_task(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text(CARD, encoding="utf-8")
    half = len(THINGS) // 2
    for split, things in (("val", THINGS[:half]), ("test", THINGS[half:])):
        rows = {
            "canonical": [FRAMES[0].format(thing) for thing in things],
            "ood": [frame.format(thing) for frame in FRAMES[1:] for thing in things],
            "hard_negatives": [f"The sky over the {thing} is" for thing in things[:2]],
        }
        (folder / split).mkdir()
        for name, prompts in rows.items():
            lines = [f'{{"prompt": "{prompt}", "target": " blue"}}' for prompt in prompts]
            (folder / split / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (folder / split / "related.jsonl").write_text(
            "\n".join(f'{{"text": "My {thing} was red ."}}' for thing in things), encoding="utf-8"
        )


if __name__ == "__main__":
    drive(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
