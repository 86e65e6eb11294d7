"""Which subjects of a task are for validation and which for test.

The halves are stratified by what the base model already does with a subject: otherwise one
half easily starts at 0.31 and the other at 0.12, and gains cannot be compared. The outcome is
kept in `splits.json`, so that the tasks can be written again without a model.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.world.recipes import Recipe, Row
from tuner.world.scoring import Completion, target_losses

SPLITS_FILE = Path(__file__).parent / "splits.json"

Splits = Mapping[str, Mapping[str, list[str]]]


def read_splits(path: Path = SPLITS_FILE) -> Splits:
    """Return the subjects of each split of each task."""
    splits: Splits = json.loads(path.read_text())
    return splits


def slacks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, rows: list[Row]
) -> list[float]:
    """Return by how many nats each row succeeds; negative where it fails."""
    target = target_losses(model, tokenizer, [Completion(row.prompt, row.target) for row in rows])
    if recipe.loss == "likelihood":
        return [recipe.threshold - loss for loss in target]
    if recipe.loss == "suppress":
        return [recipe.threshold + loss for loss in target]
    contrast = target_losses(
        model, tokenizer, [Completion(row.prompt, row.contrast or "") for row in rows]
    )
    differences = [a - b for a, b in zip(target, contrast, strict=True)]
    if recipe.loss == "balance":
        return [recipe.threshold - abs(difference) for difference in differences]
    return [recipe.threshold - difference for difference in differences]


def stratified_split(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> dict[str, list[str]]:
    """Return two halves of the subjects that the base model finds equally hard.

    Subjects are ranked by success and then by slack; of every four neighbours the outer two go
    to one half and the inner two to the other.
    """
    scores = {}
    for subject in recipe.subjects:
        values = slacks(model, tokenizer, recipe, recipe.write(subject).ood)
        success = sum(value >= 0 for value in values) / len(values)
        scores[subject] = (success, sum(values) / len(values), subject)
    ranked = sorted(scores, key=scores.__getitem__)
    halves: dict[str, list[str]] = {"val": [], "test": []}
    for rank, subject in enumerate(ranked):
        halves["val" if rank % 4 in (0, 3) else "test"].append(subject)
    return {split: sorted(subjects) for split, subjects in halves.items()}
