"""The scope classifier's network: whether an edit says something about a prompt."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tuner.deltas.memory.distances import distances_between
from tuner.editing.encoder import Encoder, pooled_states
from tuner.editing.model import twin_of
from tuner.editors._retrieval.edit_text import EditText
from tuner.errors import BaseMismatch

# How many texts are read at once where no gradient is needed.
_BATCH = 64

Scorer = Callable[[Sequence[str]], Float[Tensor, "prompts edits"]]


@final
class ScopeForm(BaseModel):
    """What a scope classifier is, apart from its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compares: Literal["embeddings", "texts"] = Field(
        description="Embeddings of edit and prompt by their distance, or both texts in one pass."
    )
    pooling: Literal["auto", "first", "last", "mean"] = Field(
        description="Which token's state stands for a text, or the mean of all; auto is the mean "
        "for a causal model, and else the first."
    )
    most_tokens: int = Field(ge=8, description="Tokens that are read of a text, from its end.")
    separated: bool = Field(
        default=False,
        description="Whether an edit is read as `prompt [SEP] target [SEP]`; else as one text.",
    )

    def text_of(self, edit: EditText, encoder: Encoder) -> str:
        """Return an edit as the classifier reads it.

        Source: the code of Mitchell et al. 2022 (arXiv:2206.06520) for the separated form.
        """
        if not self.separated:
            return edit.text
        mark = encoder.separator_text
        return f"{edit.prompt} {mark} {edit.target.strip()} {mark}"


class ScopeNetwork(nn.Module, ABC):
    """A twin of an encoder that says log g of edits and prompts; g > ½ means "in scope"."""

    def __init__(self, encoder: Encoder, form: ScopeForm, own: Collection[str]) -> None:
        super().__init__()
        self.body = twin_of(encoder.network, own)
        self._encoder = encoder
        self._most = min(form.most_tokens, encoder.context_length)
        self._pooling = form.pooling
        if form.pooling == "auto":
            # Measured on builtin:neox: the last token's state is about what follows, and prompts
            # that ask the same of other subjects are told apart three times worse by it.
            self._pooling = "mean" if encoder.causal else "first"

    @abstractmethod
    def calibrate(self, edits: Sequence[str], prompts: Sequence[str]) -> None:
        """Let training begin at even odds for pairs like these."""
        ...

    @abstractmethod
    def log_scores(self, edits: Sequence[str], prompts: Sequence[str]) -> Float[Tensor, " pairs"]:
        """Return log g of each edit with the prompt in the same place."""
        ...

    @abstractmethod
    def scorer(self, edits: Sequence[str]) -> Scorer:
        """Return what says log g of each prompt with each of these edits."""
        ...

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows hidden"]:
        return pooled_states(self.body, rows, self._pooling)

    def _framed(self, *texts: str) -> list[int]:
        """Return texts as tokens, each with its end where they are too long, apart from others."""
        before, after = self._encoder.marks
        room = self._most - len(before) - len(after)
        between = self._encoder.separator if len(texts) > 1 else []
        joined: list[int] = []
        for number, text in enumerate(texts, start=1):
            # What one text does not need of its share is left to those behind it.
            room -= len(between) if joined else 0
            share = max(room // (len(texts) - number + 1), 1)
            ids = self._encoder.encode(text)[-share:]
            room -= len(ids)
            joined += (between if joined else []) + ids
        # A network must read something before it can say something.
        return [*before, *joined, *after] or self._encoder.separator


@final
class EmbeddingNetwork(ScopeNetwork):
    """log g is minus the squared distance of two embeddings, those of edits being kept.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.2 and their code, where the distance has a
    constant factor of 1. Here it is such that training begins at even odds, whatever the encoder.
    """

    def __init__(self, encoder: Encoder, form: ScopeForm, own: Collection[str]) -> None:
        super().__init__(encoder, form, own)
        self.factor = nn.Parameter(torch.ones((), device=self.body.device), requires_grad=False)
        self._stored: dict[str, Tensor] = {}

    @torch.no_grad()
    def calibrate(self, edits: Sequence[str], prompts: Sequence[str]) -> None:
        """Let training begin at even odds for pairs like these."""
        distance = -self.log_scores(edits, prompts).mean() / self.factor
        self.factor.copy_(math.log(2) / distance.clamp(min=1e-6))

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts hidden"]:
        """Return the embedding of each text."""
        return self._pooled([self._framed(text) for text in texts])

    def log_scores(self, edits: Sequence[str], prompts: Sequence[str]) -> Float[Tensor, " pairs"]:
        """Return log g of each edit with the prompt in the same place."""
        texts = list(dict.fromkeys((*edits, *prompts)))
        place = {text: number for number, text in enumerate(texts)}
        embedded = self.embed(texts)
        one = embedded[[place[text] for text in edits]]
        other = embedded[[place[text] for text in prompts]]
        return -self.factor * (one - other).square().sum(dim=1)

    @torch.no_grad()
    def scorer(self, edits: Sequence[str]) -> Scorer:
        """Return what says log g of each prompt with each of these edits.

        Embeddings of edits are kept, so that a memory which grows embeds each edit once: from the
        first call on the weights must stay as they are.
        """
        new = [edit for edit in edits if edit not in self._stored]
        for part in _parts(new):
            self._stored.update(zip(part, self.embed(part), strict=True))
        keys = torch.stack([self._stored[edit] for edit in edits])

        @torch.no_grad()
        def score(prompts: Sequence[str]) -> Float[Tensor, "prompts edits"]:
            embedded = torch.cat([self.embed(part) for part in _parts(prompts)])
            return -self.factor * distances_between(embedded, keys).square()

        return score


@final
class PairNetwork(ScopeNetwork):
    """log g is what a head of two classes says of edit and prompt, read in one pass.

    The head starts at zero, that is at even odds: nothing is drawn.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §3.2, "cross-attention"; their head has a
    hidden layer of its own.
    """

    def __init__(self, encoder: Encoder, form: ScopeForm, own: Collection[str]) -> None:
        super().__init__(encoder, form, own)
        hidden = int(self.body.config.hidden_size)
        # Not nn.Linear's own beginning, which would draw from the global random state.
        self.head = nn.Linear(hidden, 2, device="meta").to_empty(device=self.body.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def calibrate(self, edits: Sequence[str], prompts: Sequence[str]) -> None:
        """Let training begin at even odds: a head of zeros does."""

    def log_scores(self, edits: Sequence[str], prompts: Sequence[str]) -> Float[Tensor, " pairs"]:
        """Return log g of each edit with the prompt in the same place."""
        rows = [self._framed(edit, prompt) for edit, prompt in zip(edits, prompts, strict=True)]
        return F.log_softmax(self.head(self._pooled(rows)), dim=1)[:, 0]

    def scorer(self, edits: Sequence[str]) -> Scorer:
        """Return what says log g of each prompt with each of these edits."""

        @torch.no_grad()
        def score(prompts: Sequence[str]) -> Float[Tensor, "prompts edits"]:
            pairs = [(edit, prompt) for prompt in prompts for edit in edits]
            scores = [
                self.log_scores([edit for edit, _ in part], [prompt for _, prompt in part])
                for part in _parts(pairs)
            ]
            return torch.cat(scores).reshape(len(prompts), len(edits))

        return score


@final
@dataclass(frozen=True)
class ScopeClassifier:
    """A trained scope classifier: an encoder, and the weights that take the place of its own."""

    encoder: Encoder
    form: ScopeForm
    weights: Mapping[str, Tensor]

    @cached_property
    def network(self) -> ScopeNetwork:
        """The trained network; weights that were not trained are the encoder's.

        Raises:
            BaseMismatch: the weights are of another network.
        """
        own = [name.removeprefix("body.") for name in self.weights]
        network = make_scope_network(self.encoder, self.form, own)
        put_weights(network, self.weights)
        return network.requires_grad_(False)


def make_scope_network(encoder: Encoder, form: ScopeForm, own: Collection[str]) -> ScopeNetwork:
    """Return the network that a form asks for, with copies of the encoder's weights in `own`."""
    kind = EmbeddingNetwork if form.compares == "embeddings" else PairNetwork
    return kind(encoder, form, own)


@torch.no_grad()
def put_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write weights by name into a network that has copies of its own for them.

    Raises:
        BaseMismatch: a name or a shape is another.
    """
    known = dict(network.named_parameters())
    for name, value in weights.items():
        real = value.is_floating_point()
        if name not in known or known[name].shape != value.shape or not real:
            raise BaseMismatch(
                f"The stored weight {name!r} of shape {tuple(value.shape)} has no place in the "
                "model that it was trained from."
            )
        known[name].copy_(value)


_Item = TypeVar("_Item")


def _parts(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
