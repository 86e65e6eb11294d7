"""Trains a scope classifier: prompts in the scope of an edit against prompts out of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tuner.editing.encoder import Encoder
from tuner.editing.task import Split
from tuner.editors._retrieval.classifier import (
    ScopeClassifier,
    ScopeForm,
    ScopeNetwork,
    make_scope_network,
)
from tuner.editors._retrieval.edit_text import EditText
from tuner.editors._training.amortised import (
    Schedule,
    changed_weights,
    train,
    trained_once,
    training_key,
)
from tuner.editors._training.rows import generator_for
from tuner.editors._training.training_edits import (
    TrainingEdit,
    check_training,
    hold_out,
    split_hash,
    training_edits,
)
from tuner.files.cache import Cache

_TextOf = Callable[[TrainingEdit], str]


@final
@dataclass(frozen=True)
class Negatives:
    """Which prompts out of scope a classifier learns from."""

    hard_share: float
    """How often an edit's own out-of-scope row is taken, where it has one, and not a prompt of
    another edit."""
    all_pairs: bool
    """Whether each edit of a step learns from all prompts of the step that are out of its scope."""


def train_scope_classifier(
    encoder: Encoder,
    form: ScopeForm,
    split: Split | None,
    negatives: Negatives,
    schedule: Schedule,
    cache: Cache | None,
) -> ScopeClassifier:
    """Return a scope classifier for edits like those of `split`.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.3 and their code.

    Raises:
        ConfigError: there is nothing to train on.
        EditError: the training diverged or ran out of memory.
    """
    split = check_training(split, without_outside=True)
    edits = training_edits(split)
    settings = json.dumps([form.model_dump(), asdict(negatives)], sort_keys=True)
    key = training_key(encoder.network, encoder.fingerprint, split_hash(split), schedule, settings)
    weights = trained_once(
        cache, "scope", key, lambda: _trained(encoder, form, edits, negatives, schedule)
    )
    return ScopeClassifier(encoder, form, weights)


def _trained(
    encoder: Encoder,
    form: ScopeForm,
    edits: Sequence[TrainingEdit],
    negatives: Negatives,
    schedule: Schedule,
) -> dict[str, Tensor]:
    names = [name for name, _ in encoder.network.named_parameters()]
    network = make_scope_network(encoder, form, names)
    network.body.requires_grad_(True)
    random = generator_for("scope classifier", schedule.seed)
    some, held = hold_out(edits, schedule.held_out, random)

    def text_of(edit: TrainingEdit) -> str:
        return form.text_of(EditText.of(edit.edit), encoder)

    sampler = _Sampler(some, negatives, schedule.edits_per_step, random, text_of)
    first, judged = sampler.draw(), _Pairs.of_all(held, text_of)
    edits_, prompts = zip(*first.inside, *first.outside, strict=True)
    network.calibrate(edits_, prompts)
    train(
        dict(network.named_parameters()),
        lambda: balanced_loss(network, sampler.draw()),
        (lambda: float(balanced_loss(network, judged))) if judged.usable else None,
        schedule,
    )
    base = {f"body.{name}": weight for name, weight in encoder.network.named_parameters()}
    return changed_weights(dict(network.named_parameters()), base)


@final
@dataclass(frozen=True)
class _Pairs:
    """Edits with prompts in their scope, and with prompts out of it."""

    inside: tuple[tuple[str, str], ...]
    outside: tuple[tuple[str, str], ...]

    @property
    def usable(self) -> bool:
        return bool(self.inside and self.outside)

    @classmethod
    def of_all(cls, edits: Sequence[TrainingEdit], text_of: _TextOf) -> "_Pairs":
        """Return every prompt of these edits with its own, and with the edit before it."""
        inside = [(text_of(edit), row.prompt) for edit in edits for row in edit.inside]
        outside = [(text_of(edit), row.prompt) for edit in edits for row in edit.out_of_scope]
        for edit, other in zip(edits, (*edits[1:], *edits[:1]), strict=True):
            outside += [
                (text_of(edit), row.prompt)
                for row in other.inside
                if row.prompt not in edit.prompts_inside
            ]
        return cls(tuple(inside), tuple(outside))


@final
class _Sampler:
    """Draws the pairs of each step by a generator of its own."""

    def __init__(
        self,
        edits: Sequence[TrainingEdit],
        negatives: Negatives,
        size: int,
        random: torch.Generator,
        text_of: _TextOf,
    ) -> None:
        self._text_of = text_of
        self._edits = edits
        self._negatives = negatives
        self._size = size
        self._random = random

    def draw(self) -> _Pairs:
        order = torch.randperm(len(self._edits), generator=self._random)[: self._size]
        some = [self._edits[place] for place in order.tolist()]
        inside = [(edit, self._one_of([row.prompt for row in edit.inside])) for edit in some]
        outside = [(edit, self._prompt_outside(edit)) for edit in some]
        if self._negatives.all_pairs:
            prompts = [prompt for _, prompt in (*inside, *outside)]
            outside = [(edit, prompt) for edit in some for prompt in prompts]
        # An edit of another record may have the same prompt.
        apart = [(e, prompt) for e, prompt in outside if prompt not in e.prompts_inside]
        return _Pairs(
            tuple((self._text_of(edit), prompt) for edit, prompt in inside),
            tuple((self._text_of(edit), prompt) for edit, prompt in apart),
        )

    def _prompt_outside(self, edit: TrainingEdit) -> str:
        hard = float(torch.rand((), generator=self._random)) < self._negatives.hard_share
        if hard and edit.out_of_scope:
            return self._one_of([row.prompt for row in edit.out_of_scope])
        others = [other for other in self._edits if other.record != edit.record]
        if not others:
            return self._one_of([row.prompt for row in edit.out_of_scope or edit.inside])
        return self._one_of([row.prompt for row in others[self._below(len(others))].inside])

    def _one_of(self, prompts: Sequence[str]) -> str:
        return prompts[self._below(len(prompts))]

    def _below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self._random))


def balanced_loss(network: ScopeNetwork, pairs: _Pairs) -> Float[Tensor, ""]:
    """Return −log g of pairs in scope plus −log (1 − g) of pairs out of it, each side's mean."""
    edits, prompts = zip(*pairs.inside, *pairs.outside, strict=True)
    log_in = network.log_scores(edits, prompts)
    count = len(pairs.inside)
    # Texts that the network cannot tell apart would make an infinite loss without a gradient.
    log_out = torch.log(-torch.expm1(log_in[count:].clamp(max=-1e-6)))
    loss = -log_in[:count].mean()
    return loss if not pairs.outside else loss - log_out.mean()
