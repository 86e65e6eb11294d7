"""Stored edits, and which of them a prompt is in the scope of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from tuner.editing.prompts import Routes
from tuner.editors._retrieval.classifier import ScopeClassifier, Scorer
from tuner.editors._retrieval.edit_text import EditText
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class Scope:
    """Edits as text, with the classifier that says which of them a prompt is about."""

    edits: tuple[EditText, ...]
    classifier: ScopeClassifier
    threshold: float

    def routes(self, prompts: Sequence[str]) -> Routes:
        """Return the route of each prompt by the edit that the classifier is surest of.

        At strength s the threshold is `threshold` to the power of s.

        Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.1, where s = 1.
        """
        if not self.edits:
            entries = torch.zeros(len(prompts), dtype=torch.long)
            return Routes(entries, torch.full((len(prompts),), math.inf))
        best, entries = self._scorer(prompts).max(dim=1)
        return Routes(entries, best / math.log(self.threshold))

    def with_edits(self, edits: Sequence[EditText]) -> "Scope":
        """Return the scope with further edits; one of a stored prompt takes the old one's place."""
        new = {edit.prompt for edit in edits}
        kept = tuple(edit for edit in self.edits if edit.prompt not in new)
        return Scope((*kept, *edits), self.classifier, self.threshold)

    def without(self, index: int) -> "Scope":
        """Return the scope without the edit of that number, from 0.

        Raises:
            ConfigError: there is no such edit.
        """
        if not 0 <= index < len(self.edits):
            raise ConfigError(f"There is no edit {index}: the memory has {len(self.edits)}.")
        kept = (*self.edits[:index], *self.edits[index + 1 :])
        return Scope(kept, self.classifier, self.threshold)

    @cached_property
    def _scorer(self) -> Scorer:
        # Strengths of a memory share this object, and so what is kept of its edits.
        read = self.classifier
        texts = [read.form.text_of(edit, read.encoder) for edit in self.edits]
        return read.network.scorer(texts)
