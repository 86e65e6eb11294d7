"""Entity-renaming augmentation, so that the model copies from the edit instead of memorising."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import final

import torch
from transformers import PreTrainedTokenizerBase

from tuner.editing.task import Example
from tuner.editors._training.training_edits import TrainingEdit

_ENDS = " .,;:!?"


@final
class Names:
    """Names to give: those of other edits, and made-up ones of a tokenizer's pieces of words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, others: Sequence[TrainingEdit]) -> None:
        self._tokenizer = tokenizer
        self._others = [name for edit in others if (name := edit.edit.target.strip(_ENDS))]

    def draw(self, random: torch.Generator) -> str:
        """Return another edit's target, or as often one or two words of up to two pieces each.

        Made-up names alone would tell that a row was renamed, and with it how it is answered.
        """
        if self._others and _below(2, random):
            return self._others[_below(len(self._others), random)]
        words = []
        for _ in range(1 + _below(2, random)):
            drawn = [_below(len(self._pieces), random) for _ in range(1 + _below(2, random))]
            words.append("".join(self._pieces[place] for place in drawn))
        return " ".join(words)

    def judges(self, row: Example, edit: TrainingEdit) -> bool:
        """Return whether a row asks about another edit's target, of which the edit says nothing."""
        known = self._known
        if known is None:
            return False
        own = edit.edit.prompt + edit.edit.target
        return any(name not in own for name in known.findall(row.prompt))

    @cached_property
    def _known(self) -> re.Pattern[str] | None:
        return _any_of(set(self._others)) if self._others else None

    @cached_property
    def _pieces(self) -> list[str]:
        known = (self._tokenizer.decode([token]).strip() for token in range(len(self._tokenizer)))
        letters = sorted({piece for piece in known if piece.isalpha()})
        return [piece for piece in letters if len(piece) > 1] or letters or ["x"]


def renamed(edit: TrainingEdit, names: Names, random: torch.Generator) -> TrainingEdit:
    """Return the edit with other names for its target and contrast, in its rows as in itself.

    Of the rows in its scope only those are left that stay right: rows that mention the target, and
    rows that decide without it, between a target and a contrast or about another edit's target.
    Where no row mentions it, as with a label, the edit is returned as it is.
    """
    old = edit.edit.target.strip(_ENDS)
    if not old or not any(_mentions(row, old) for row in edit.in_scope):
        return edit
    target = names.draw(random)
    new = {old: target}
    if edit.edit.contrast is not None and edit.edit.contrast.strip(_ENDS):
        new.setdefault(edit.edit.contrast.strip(_ENDS), names.draw(random))
    kept = [
        row
        for row in edit.in_scope
        if _mentions(row, old)
        or ((row.contrast is not None or names.judges(row, edit)) and not _mentions(row, target))
    ]
    return replace(
        edit,
        edit=_replaced(edit.edit, new),
        in_scope=tuple(_replaced(row, new) for row in kept),
    )


def repeats(edit: TrainingEdit, row: Example) -> bool:
    """Return whether a row's prompt says again what the edit says: its prompt, or its target."""
    name = edit.edit.target.strip(_ENDS)
    return row is edit.edit or bool(name and _any_of([name]).search(row.prompt))


def _mentions(row: Example, name: str) -> bool:
    pattern = _any_of([name])
    return bool(pattern.search(row.prompt) or pattern.search(row.target))


def _replaced(row: Example, new: Mapping[str, str]) -> Example:
    old = _any_of(new)

    def say(text: str) -> str:
        # In one pass, so that a name that was put in is not replaced in its turn.
        return old.sub(lambda match: new[match[0]], text)

    return Example(
        prompt=say(row.prompt),
        target=say(row.target),
        contrast=None if row.contrast is None else say(row.contrast),
        record=row.record,
    )


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    # The longest first; and a name within another word is not that name.
    longest = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


def _below(count: int, random: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=random))
