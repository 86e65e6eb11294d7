"""How well a memory tells what its edits are about from what they are not, apart from answers."""

from collections.abc import Sequence

import torch

from tuner.deltas.memory.memory import MemoryDelta
from tuner.editing.likelihood import in_length_order
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts, Routes, aside
from tuner.editing.task import Example, Split
from tuner.errors import EditError

_BATCH = 64


def scope_figures(model: LanguageModel, delta: MemoryDelta, split: Split) -> dict[str, float]:
    """Return precision, recall and AUC of a memory's scope, called as in `Scores`.

    In scope are the prompts of the edits and of the OOD rows; out of it are those of the hard
    negatives and of the neighbours. Each prompt counts once. What is not defined is left out:
    precision where no prompt is taken to be in scope, AUC where none is out of it, and recall of
    entries where these are not edits.

    Raises:
        EditError: the strength that a prompt needs is NaN.
    """
    inside = _by_prompt((*split.canonical.rows, *split.ood.rows))
    outside = _by_prompt((*split.hard_negatives.rows, *split.neighbours))
    # A prompt that asks for an edit cannot count against the memory.
    outside = {prompt: record for prompt, record in outside.items() if prompt not in inside}
    wanted = None
    entries = delta.entries_of(split.canonical.rows)
    records = [row.record for row in split.canonical.rows]
    if entries is not None and None not in records:
        entry = dict(zip(records, entries, strict=True))
        wanted = [entry.get(record, -1) for record in inside.values()]
    return judge_routes(
        route_prompts(model, delta, list(inside)),
        route_prompts(model, delta, list(outside)),
        delta.strength,
        wanted,
    )


def judge_routes(
    inside: Routes, outside: Routes, strength: float, wanted: Sequence[int] | None = None
) -> dict[str, float]:
    """Return the figures of prompts that are in scope and of prompts that are not.

    `wanted` is the entry that each prompt in scope belongs to.

    Raises:
        EditError: what a prompt needs is NaN.
    """
    if torch.isnan(inside.needed).any() or torch.isnan(outside.needed).any():
        raise EditError("The strength at which a prompt is in the memory's scope is NaN.")
    figures: dict[str, float] = {}
    taken = inside.inside(strength)
    hits, falls = int(taken.sum()), int(outside.inside(strength).sum())
    if hits + falls:
        figures["scope_precision"] = hits / (hits + falls)
    if len(taken):
        figures["scope_recall"] = hits / len(taken)
    if len(taken) and wanted is not None:
        right = inside.entries.cpu() == torch.tensor(wanted)
        figures["scope_entry_recall"] = float((taken.cpu() & right).double().mean())
    if len(taken) and len(outside.needed):
        figures["scope_auc"] = _auc(inside.needed, outside.needed)
    return figures


@torch.no_grad()
def route_prompts(model: LanguageModel, delta: MemoryDelta, prompts: Sequence[str]) -> Routes:
    """Return the route of each prompt, in their order, also where the memory is applied."""
    rows = model.encode_prompts(prompts)
    entries = torch.zeros(len(rows), dtype=torch.long)
    needed = torch.full((len(rows),), torch.inf)
    for batch in in_length_order([len(row) for row in rows], _BATCH):
        with aside():
            routes = delta.route(
                model.network, Prompts.of([rows[row] for row in batch], model.device)
            )
        entries[batch] = routes.entries.cpu()
        needed[batch] = routes.needed.float().cpu()
    return Routes(entries, needed)


def _by_prompt(rows: Sequence[Example]) -> dict[str, str | None]:
    return {row.prompt: row.record for row in reversed(rows)}


def _auc(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """Return the share of pairs in which the prompt in scope needs less, ties as a half.

    It is the area under the ROC curve; infinities tie with each other.
    """
    less = (inside[:, None] < outside).double().mean()
    tied = (inside[:, None] == outside).double().mean()
    return float(less + tied / 2)
