"""Memories of edits as text: a reader sees the edit that a prompt is about, and answers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.deltas.memory.answering import AnsweringMemory, Asked
from tuner.deltas.memory.memory import MemoryState
from tuner.editing.companions import ModelReference, Surroundings
from tuner.editing.likelihood import Continuation
from tuner.editing.model import context_length_of
from tuner.editing.prompts import Prompts, Routes
from tuner.editing.task import Example
from tuner.editing.tokens import TextReader
from tuner.editors._retrieval.classifier import ScopeClassifier, ScopeForm
from tuner.editors._retrieval.edit_text import EditText, continuation_after
from tuner.editors._retrieval.scope import Scope
from tuner.errors import ConfigError


class ScopedState(MemoryState):
    """What must be known of a memory of edits as text, beside the trained weights."""

    edits: tuple[EditText, ...]
    threshold: float = Field(gt=0, lt=1)
    joint: str
    form: ScopeForm
    classifier: ModelReference


@final
@dataclass(frozen=True)
class Reader:
    """A language model that reads an edit before a prompt."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: TextReader

    @property
    def token_count(self) -> int:
        """How many tokens it knows; what its embeddings have beyond is padding."""
        return min(int(self.network.config.vocab_size), len(self.tokenizer))

    @torch.no_grad()
    def read(self, rows: Sequence[Continuation]) -> list[Float[Tensor, "places tokens"]]:
        """Return the logits before each token of each continuation, and after its last.

        Raises:
            ConfigError: a continuation has a token that the model does not know.
        """
        highest = max(max(row.ids) for row in rows)
        if highest >= self.network.config.vocab_size:
            raise ConfigError(
                f"The text has token {highest}, and the model that answers knows "
                f"{self.network.config.vocab_size}. Leave out the base's further special tokens."
            )
        batch = Prompts.of([row.ids for row in rows], self.network.device)
        first = min(row.start for row in rows) - 1
        columns = torch.arange(first, batch.ids.shape[1], device=batch.ids.device)
        logits = self.network(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            logits_to_keep=columns,
            use_cache=False,
        ).logits[..., : self.token_count]
        return [
            of_row[row.start - 1 - first : len(row.ids) - first]
            for row, of_row in zip(rows, logits, strict=True)
        ]


@dataclass(frozen=True)
class ScopedMemory(AnsweringMemory):
    """Edits as text with a scope classifier; single edits are added and removed without training.

    The classifier sees the prompt alone, as text, and never what follows it.
    """

    scope: Scope
    joint: str
    tokenizer: PreTrainedTokenizerBase
    """The base model's."""

    @abstractmethod
    def reader(self, network: PreTrainedModel) -> Reader:
        """Return the model that answers instead of `network`."""
        ...

    @cached_property
    def texts(self) -> TextReader:
        """What encodes text for the base model."""
        return TextReader(self.tokenizer)

    @property
    def edits(self) -> tuple[EditText, ...]:
        """The stored edits, in their order."""
        return self.scope.edits

    def with_edits(self, examples: Sequence[Example]) -> Self:
        """Return the memory with further edits; one of a stored prompt takes the old one's place.

        Nothing is trained.
        """
        return replace(self, scope=self.scope.with_edits([EditText.of(row) for row in examples]))

    def without(self, index: int) -> Self:
        """Return the memory without the edit of that number, from 0.

        Raises:
            ConfigError: there is no such edit.
        """
        return replace(self, scope=self.scope.without(index))

    def entries_of(self, edits: Sequence[Example]) -> list[int] | None:
        """Return where each edit is stored, −1 where it is not, or not with this target."""
        known = {edit: entry for entry, edit in enumerate(self.edits)}
        return [known.get(EditText.of(edit), -1) for edit in edits]

    def check_fit(self, network: PreTrainedModel) -> None:
        """Take any network: the memory reads and writes text."""

    def route(self, network: PreTrainedModel, prompts: Prompts) -> Routes:
        """Return the route of each prompt by its text."""
        texts = [self.texts.decode_prompt(ids) for ids in prompts.tokens()]
        routes = self.scope.routes(texts)
        place = prompts.ids.device
        return Routes(routes.entries.to(place), routes.needed.to(place))

    def answers(
        self, network: PreTrainedModel, asked: Sequence[Asked]
    ) -> list[Float[Tensor, "places tokens"]]:
        """Return what the reader says after the edit, the prompt and its continuation.

        Raises:
            ConfigError: an edit and a continuation exceed the reader's context.
        """
        reader = self.reader(network)
        most = context_length_of(reader.network)
        rows = [
            continuation_after(
                reader.texts,
                self.edits[row.entry],
                self.joint,
                self.texts.decode_prompt(row.prompt),
                row.continuation,
                most=most,
            )
            for row in asked
        ]
        shown = int(network.config.vocab_size)
        return [logits[:, :shown] for logits in reader.read(rows)]

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights that were trained."""
        return named("classifier", self.scope.classifier.weights)

    def describe(self) -> str:
        """Return the number of edits and of trained numbers."""
        trained = sum(tensor.numel() for tensor in self.tensors().values())
        return f"{len(self.edits)} edits as text, {trained:,} trained numbers"


def classifier_record(classifier: ScopeClassifier) -> ModelReference:
    """Return what must be known to find the classifier's encoder again."""
    encoder = classifier.encoder
    return ModelReference(
        id=encoder.id,
        revision=encoder.revision,
        fingerprint=encoder.fingerprint,
        dtype="float32",
    )


def restore_scope(
    state: ScopedState, tensors: Mapping[str, Tensor], surroundings: Surroundings
) -> Scope:
    """Return the edits with the classifier that was trained for them.

    Raises:
        ConfigError: the classifier's encoder cannot be loaded.
        BaseMismatch: it is another one now, or the stored weights do not fit it.
    """
    encoder = surroundings.companions.recall_encoder(state.classifier)
    classifier = ScopeClassifier(encoder, state.form, unnamed("classifier", tensors))
    # Made here and not at the first prompt: what does not fit fails before anything is run.
    _ = classifier.network
    return Scope(state.edits, classifier, state.threshold)


def named(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of one of a memory's networks, by the names that they are stored under."""
    return {f"{part}:{name}": weight.cpu().contiguous() for name, weight in weights.items()}


def unnamed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that `named` stored."""
    mark = f"{part}:"
    return {
        name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)
    }
