"""Other targets for edits to train on: who sees each target only once must read it to say it."""

import re
from dataclasses import replace
from functools import cached_property
from typing import final

import torch
from transformers import PreTrainedTokenizerBase

from tuner.editing.task import Example
from tuner.editing.training_edits import TrainingEdit

_ENDS = " .,;:!?"


@final
class Names:
    """Makes up names from pieces of words that a tokenizer knows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def draw(self, random: torch.Generator) -> str:
        """Return one or two words of up to two pieces each."""
        words = []
        for _ in range(1 + _below(2, random)):
            drawn = [_below(len(self._pieces), random) for _ in range(1 + _below(2, random))]
            words.append("".join(self._pieces[place] for place in drawn))
        return " ".join(words)

    @cached_property
    def _pieces(self) -> list[str]:
        known = (self._tokenizer.decode([token]).strip() for token in range(len(self._tokenizer)))
        letters = sorted({piece for piece in known if piece.isalpha()})
        return [piece for piece in letters if len(piece) > 1] or letters or ["x"]


def renamed(edit: TrainingEdit, name: str) -> TrainingEdit:
    """Return the edit with `name` in the place of its target, in its rows as in itself.

    Of the rows in its scope only those are left that stay right: rows that mention the target,
    and rows that decide between a target and a contrast without it. Where no row mentions it, as
    with a label, the edit is returned as it is.
    """
    old = edit.edit.target.strip(_ENDS)
    # A name within another word is not that name.
    found = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)")
    if not old or not any(_mentions(row, found) for row in edit.in_scope):
        return edit
    kept = [row for row in edit.in_scope if _mentions(row, found) or row.contrast is not None]
    return replace(
        edit,
        edit=_replaced(edit.edit, found, name),
        in_scope=tuple(_replaced(row, found, name) for row in kept),
    )


def _mentions(row: Example, name: re.Pattern[str]) -> bool:
    return bool(name.search(row.prompt) or name.search(row.target))


def _replaced(row: Example, old: re.Pattern[str], new: str) -> Example:
    return Example(
        prompt=old.sub(new, row.prompt),
        target=old.sub(new, row.target),
        contrast=None if row.contrast is None else old.sub(new, row.contrast),
        record=row.record,
    )


def _below(count: int, random: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=random))
