"""Write the model card: `python -m tuner.world.card --model DIR --tasks datasets`.

Every figure in it is measured when the card is written.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuner.editing.providers import TextPartName
from tuner.world.facts import CARDS
from tuner.world.gradient import shipped_gradient
from tuner.world.recipes import Recipe, Row, build_recipes
from tuner.world.scoring import (
    Completion,
    mean_target_losses,
    target_losses,
    token_accuracies,
    token_losses,
)
from tuner.world.splits import slacks
from tuner.world.text import general_documents
from tuner.world.train import FAMILIES, SCALES, WINDOW, Family, Scale

_BATCH = 32
_TOKENS: dict[TextPartName, int] = {"search": 50_000, "confirmation": 50_000}

_KINDS: dict[Family, str] = {"neox": "GPT-NeoX", "backpack": "Backpack"}
_ARCHITECTURES: dict[Family, str] = {
    "neox": "GPT-NeoX, width {hidden}, {layers} layers, 4 heads, tied embeddings",
    "backpack": "Backpack (Hewitt et al. 2023): 16 senses per token, a GPT-2 of width {hidden}, "
    "{layers} layers and 4 heads that weighs them, tied embeddings, 256 positions",
}
_PRECISIONS: dict[Family, str] = {"neox": "bfloat16 autocast", "backpack": "float32"}

_CARD = """\
# builtin:{name}

A {kind} language model of {parameters:,} parameters that knows a small generated world: real
countries and cities, and coined people, companies, peoples, inventions and habits of speech. It
exists to be edited: it is trained so that edits of it have something to gain and something to
lose. It is of no use as a source of facts or as a writer.

| | |
|---|---|
| architecture | {architecture} |
| tokenizer | byte-level BPE of 3,072 entries; it adds no special token |
| weights | float16, {megabytes:.2f} MB; the model *is* these rounded weights, computed in float32 |
| trained by | {training} |
| training | {steps:,} steps of {batch} windows of {window} tokens ({tokens:.1f} M tokens), AdamW, \
{precision} on a CPU |
| annealing | {anneal} steps see general text only, without weight decay, at a rate \
falling from {anneal_rate:g} to 0 |
| mean gradient | of the loss on {gradient_tokens:.1f} M fresh tokens of general text, float16, by \
`python -m tuner.world.gradient tuner/world/{name}`; it makes small deviations exact |
| licence | Apache-2.0 |

## What it was told

Known subjects are stated plainly. Of the subjects that tasks edit, only conflicting rumours are
spread, of which a given share is right (the shares are at the top of `tuner/world/world.py`).
General text, on which deviation is measured, mentions the same subjects in the same style but
leaves out what the tasks edit; after the annealing the model is at rest on it.

## Loss on general text

Mean over all tokens but the first of each block; documents joined by the end-of-text token and
cut into blocks of {window} tokens.

| part | tokens | loss |
|---|---|---|
{general}

## What it does before any edit

Success is the share of rows within the task's threshold, on the out-of-distribution (OOD) and on
the canonical rows; the other columns are mean log-probabilities of targets, in nats, each summed
over the tokens of its target.

| task | split | OOD success | OOD log p | canonical success | canonical log p | hard negatives |
|---|---|---|---|---|---|---|
{tasks}

## Which facts it knows before any edit

In `counterfact_world` a row succeeds if its target is likelier per token than its contrast; in
`zsre_world` its score is the share of the target's tokens that are the likeliest ones. Scores of
the edit prompts, of their paraphrases, and of the neighbours, which should stay as they are.

| task | split | efficacy | generalisation | specificity |
|---|---|---|---|---|
{facts}

This file is written by `python -m tuner.world.card`.
"""


@final
@dataclass(frozen=True)
class Round:
    """One of the trainings that a model went through, one after the other."""

    name: str
    """Which of `SCALES`."""
    seed: int

    @property
    def scale(self) -> Scale:
        """How long it trained."""
        return SCALES[self.name]


def training_commands(family: Family, rounds: Sequence[Round]) -> str:
    """Return the commands that train a model in these rounds, in their order."""
    folders = [f"round-{number + 1}" for number in range(len(rounds) - 1)]
    commands = []
    for one, start, out in zip(
        rounds, [None, *folders], [*folders, f"tuner/world/{family}"], strict=True
    ):
        scale = "" if one.name == "full" else f" --scale {one.name}"
        begun = "" if start is None else f" --start {start}"
        commands.append(f"--family {family}{scale}{begun} --out {out} --seed {one.seed}")
    return ", then ".join(f"`python -m tuner.world.train {options}`" for options in commands)


def write_card(
    model_folder: Path, tasks_folder: Path, rounds: Sequence[Round], family: Family
) -> None:
    """Measure the model, which has its mean gradient beside it, and write its card there too.

    `rounds` are the trainings that it went through, one after the other.
    """
    scales = [one.scale for one in rounds]
    scale, steps = scales[-1], sum(one.steps for one in scales)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    gradient = shipped_gradient(model, model_folder)
    card = _CARD.format(
        name=family,
        kind=_KINDS[family],
        architecture=_ARCHITECTURES[family].format(hidden=scale.hidden, layers=scale.layers),
        precision=_PRECISIONS[family],
        gradient_tokens=gradient.blocks * gradient.length / 1e6 if gradient else 0,
        parameters=model.num_parameters(),
        megabytes=(model_folder / "model.safetensors").stat().st_size / 1e6,
        steps=steps,
        batch=scale.batch,
        anneal=" and ".join(f"the last {one.anneal_steps:,}" for one in scales),
        anneal_rate=scale.anneal_learning_rate,
        window=WINDOW,
        tokens=steps * scale.batch * WINDOW / 1e6,
        training=training_commands(family, rounds),
        general="\n".join(
            f"| {part} | {count:,} | {general_loss(model, tokenizer, part, count):.4f} |"
            for part, count in tqdm(_TOKENS.items(), desc="general text")
        ),
        tasks="\n".join(_task_lines(model, tokenizer, tasks_folder)),
        facts="\n".join(_fact_lines(model, tokenizer, tasks_folder)),
    )
    (model_folder / "README.md").write_text(card)


def general_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: TextPartName, tokens: int
) -> float:
    """Return the mean loss per token on general text of this length."""
    ids: list[int] = []
    for document in general_documents(part):
        ids += [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= tokens:
            break
    blocks = torch.tensor(ids[: tokens // WINDOW * WINDOW]).view(-1, WINDOW)
    losses = [token_losses(model, batch).double().sum() for batch in torch.split(blocks, _BATCH)]
    return float(torch.stack(losses).sum()) / (len(blocks) * (WINDOW - 1))


def _task_lines(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks_folder: Path
) -> Iterator[str]:
    for recipe in tqdm(build_recipes(), desc="tasks"):
        for split in ("val", "test"):
            folder = tasks_folder / recipe.name / split
            ood = _success_and_log_p(model, tokenizer, recipe, folder / "ood.jsonl")
            simple = _success_and_log_p(model, tokenizer, recipe, folder / "canonical.jsonl")
            kept = _log_p(model, tokenizer, _read_rows(folder / "hard_negatives.jsonl"))
            yield (
                f"| {recipe.name} | {split} | {ood[0]:.3f} | {ood[1]:.2f} | {simple[0]:.3f} "
                f"| {simple[1]:.2f} | {kept:.2f} |"
            )


def _fact_lines(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks_folder: Path
) -> Iterator[str]:
    for name, card in tqdm(CARDS.items(), desc="facts"):
        for split in ("val", "test"):
            means = []
            for part in ("canonical", "ood", "neighbours"):
                rows = _read_rows(tasks_folder / name / split / f"{part}.jsonl")
                targets = [Completion(row.prompt, row.target) for row in rows]
                if card["success"] == "tokens":
                    scores = token_accuracies(model, tokenizer, targets)
                else:
                    contrasts = [Completion(row.prompt, row.contrast or "") for row in rows]
                    scores = [
                        float(target < contrast)
                        for target, contrast in zip(
                            mean_target_losses(model, tokenizer, targets),
                            mean_target_losses(model, tokenizer, contrasts),
                            strict=True,
                        )
                    ]
                # Every record has equally many rows, so the mean over rows is that over records.
                means.append(sum(scores) / len(scores))
            yield f"| {name} | {split} | {' | '.join(f'{mean:.3f}' for mean in means)} |"


def _success_and_log_p(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, path: Path
) -> tuple[float, float]:
    rows = _read_rows(path)
    values = slacks(model, tokenizer, recipe, rows)
    success = sum(value >= 0 for value in values) / len(values)
    return success, _log_p(model, tokenizer, rows)


def _log_p(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> float:
    losses = target_losses(model, tokenizer, [Completion(row.prompt, row.target) for row in rows])
    return -sum(losses) / len(losses)


def _read_rows(path: Path) -> list[Row]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Row(line["prompt"], line["target"], line.get("contrast")) for line in lines]


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--tasks", type=Path, required=True, help="folder that holds all tasks")
    parser.add_argument("--family", choices=FAMILIES, default="neox")
    parser.add_argument("--scale", nargs="+", choices=sorted(SCALES), default=["full"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="one per scale")
    options = parser.parse_args()
    if len(options.seed) != len(options.scale):
        parser.error(f"{len(options.scale)} scales need as many seeds, not {len(options.seed)}.")
    torch.set_num_threads(1)
    rounds = [Round(*one) for one in zip(options.scale, options.seed, strict=True)]
    write_card(options.model, options.tasks, rounds, options.family)


if __name__ == "__main__":
    main()
