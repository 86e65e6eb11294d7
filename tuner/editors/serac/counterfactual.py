"""The counterfactual model: a small language model that answers by an edit standing before it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tuner.editing.likelihood import Continuation, MeanOver, read_targets, token_losses
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, Split
from tuner.editors._retrieval.classifier import put_weights
from tuner.editors._retrieval.edit_text import EditText, answer_after
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
from tuner.editors.serac.renaming import Names, renamed, repeats
from tuner.files.cache import Cache


@final
@dataclass(frozen=True)
class Counterfactual:
    """A small model, and the trained weights that take the place of its own."""

    small: LanguageModel
    weights: Mapping[str, Tensor]

    @cached_property
    def network(self) -> PreTrainedModel:
        """The trained network; weights that were not trained are the small model's.

        Raises:
            BaseMismatch: the weights are of another model.
        """
        network = self.small.twin(own=self.weights)
        put_weights(network, self.weights)
        return network


@final
@dataclass(frozen=True)
class CounterfactualSettings:
    """How edits are read, and what is learned of them."""

    joint: str
    """The separator between an edit and a prompt."""
    unlikelihood: bool
    """Whether the tokens of a row's contrast are made unlikely."""
    renamed_share: float
    """How often an edit is read with other names."""
    rows_per_edit: int
    """Rows in an edit's scope that a step learns from beside the edit itself."""
    prompt_weight: float
    """Weight of the tokens of prompts that repeat what their edit says, beside the answers."""
    mean_over: MeanOver = "tokens"
    """Whether answers count alike or by their tokens."""


def train_counterfactual(
    small: LanguageModel,
    split: Split | None,
    schedule: Schedule,
    cache: Cache | None,
    reading: CounterfactualSettings,
) -> Counterfactual:
    """Return a model that says what an edit, read before a prompt in its scope, asks for.

    It is trained with the right edit, not with the one that a classifier would find.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.3 and their code. That targets are renamed
    is ours: they had some hundred thousand edits to train on, where a few hundred are learned by
    heart and none is read. So are several rows of an edit in a step, without which it is hardly
    seen that two claims differ in one name alone, and that prompts are learned that repeat an edit:
    what can be said again can be recognised.

    Raises:
        ConfigError: there is nothing to train on, or an edit exceeds the model's context.
        EditError: the training diverged or ran out of memory.
    """
    split = check_training(split, without_outside=True)
    edits = training_edits(split)
    settings = json.dumps(asdict(reading), sort_keys=True)
    data = split_hash(split)
    key = training_key(small.network, small.fingerprint, data, schedule, settings)

    def make() -> dict[str, Tensor]:
        return _trained(_Rows(small, reading), edits, schedule)

    return Counterfactual(small, trained_once(cache, "counterfactual", key, make))


def _trained(rows: "_Rows", edits: Sequence[TrainingEdit], schedule: Schedule) -> dict[str, Tensor]:
    own = dict(rows.small.network.named_parameters())
    network = rows.small.twin(own=own).requires_grad_(True)
    random = generator_for("counterfactual model", schedule.seed)
    some, held = hold_out(edits, schedule.held_out, random)
    names = Names(rows.small.tokenizer, some)

    def step_loss() -> Tensor:
        order = torch.randperm(len(some), generator=random)[: schedule.edits_per_step]
        drawn = []
        for edit in (some[place] for place in order.tolist()):
            if float(torch.rand((), generator=random)) < rows.reading.renamed_share:
                edit = renamed(edit, names, random)
            drawn.append((edit, edit.edit))
            others = torch.randperm(len(edit.in_scope), generator=random).tolist()
            drawn += [(edit, edit.in_scope[row]) for row in others[: rows.reading.rows_per_edit]]
        return rows.loss(network, drawn)

    judged = [(edit, row) for edit in held for row in edit.inside]
    train(
        dict(network.named_parameters()),
        step_loss,
        (lambda: float(rows.loss(network, judged))) if judged else None,
        schedule,
    )
    return changed_weights(dict(network.named_parameters()), own)


@final
@dataclass(frozen=True)
class _Row:
    """A prompt read after an edit, and what is learned of it."""

    text: Continuation
    """Edit, prompt and target; the edit is given, and the target comes last."""
    answer: int
    """Where the target starts."""
    repeats: bool
    """Whether the prompt says again what the edit says."""
    parting: tuple[int, int] | None
    """Where the contrast parts from the target, and by which token."""


@final
@dataclass(frozen=True)
class _Rows:
    """What the model learns of rows in the scope of an edit."""

    small: LanguageModel
    reading: CounterfactualSettings

    def loss(
        self, network: PreTrainedModel, rows: Sequence[tuple[TrainingEdit, Example]]
    ) -> Float[Tensor, ""]:
        """Return the mean −log p of the answers' tokens, and of −log (1 − p) of contrasts.

        Of a contrast the first token counts that is not the target's. What comes after it follows
        from it and is right where the contrast is: making that unlikely too would unteach words.
        """
        read = [self._row(edit, row) for edit, row in rows]
        said = read_targets(network, [row.text for row in read], self.small.end_id)
        losses = token_losses(said.logits, said.tokens)
        places = torch.arange(said.tokens.shape[1], device=losses.device) + said.first
        answers = torch.tensor([row.answer for row in read], device=losses.device)[:, None]
        answered = said.judged & (places >= answers)
        if self.reading.mean_over == "tokens":
            total = (losses * answered).sum() / answered.sum()
        else:
            total = ((losses * answered).sum(dim=1) / answered.sum(dim=1)).mean()
        parted = [
            (index, place - said.first, token)
            for index, row in enumerate(read)
            if row.parting is not None
            for place, token in [row.parting]
        ]
        if parted and self.reading.unlikelihood:
            index, place, token = (list(column) for column in zip(*parted, strict=True))
            likely = said.logits[index, place].float().log_softmax(dim=-1)
            # A token that is certain would make an infinite loss.
            chosen = likely[range(len(token)), token].clamp(max=-1e-6)
            total = total - torch.log(-torch.expm1(chosen)).mean()
        repeated = torch.tensor([row.repeats for row in read], device=losses.device)[:, None]
        prompts = said.judged & ~answered & repeated
        if self.reading.prompt_weight and prompts.any():
            total = total + self.reading.prompt_weight * losses[prompts].mean()
        return total

    def _row(self, edit: TrainingEdit, row: Example) -> _Row:
        given, text = self._read(edit, row.prompt, row.target)
        parting = None
        if row.contrast is not None:
            _, other = self._read(edit, row.prompt, row.contrast)
            # Counted from the end of the edit: the prompt may be cut at its start.
            pairs = zip(text.ids[given:], other.ids[given:], strict=False)
            place = next((at for at, (one, two) in enumerate(pairs, given) if one != two), None)
            parting = None if place is None else (place, other.ids[place])
        return _Row(replace(text, start=given), text.start, repeats(edit, row), parting)

    def _read(self, edit: TrainingEdit, prompt: str, said: str) -> tuple[int, Continuation]:
        """Return how many tokens the edit has, and all of the text with where its answer starts."""
        told, joint = EditText.of(edit.edit), self.reading.joint
        most = self.small.context_length
        return answer_after(self.small.texts, told, joint, prompt, said, most=most)
