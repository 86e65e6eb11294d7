"""GRACE: a codebook of keys, radii and values at one linear map, grown edit by edit."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tuner.deltas.memory.distances import distances_between
from tuner.editing.activations import prompt_activations
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary, Carried, EpochEdit
from tuner.editing.layers import OneLayerEditor
from tuner.editing.likelihood import EncodedExample, encode_examples, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts
from tuner.editing.task import ExampleSet, LossKind
from tuner.editors._training.inner_gradient import inner_gradient
from tuner.editors._training.loop import trainable_twin
from tuner.editors._training.rows import generator_for
from tuner.editors._training.unrelated_prompts import general_prompts
from tuner.editors.grace.codebook import Codebook, Expansion
from tuner.editors.grace.memory import GraceDelta, Replacement, at_the_last
from tuner.errors import EditError

# As many prompts tell well enough how far apart prompts are.
_UNRELATED = 256
# Examples whose values are sought in one pass, so that memory stays bounded.
_ROWS = 64


@final
@dataclass(frozen=True)
class _Entries(Carried):
    """The codebook of earlier batches, with the values of its entries."""

    book: Codebook
    values: Float[Tensor, "entries d_out"]


@final
class Grace(OneLayerEditor):
    """Stores each edit at what one linear map reads at the end of its prompt.

    Edits are taken in one after the other. Near an entry they share it where they ask for the
    same, and cut its reach where they do not. Each value is then sought by Adam.

    Source: Hartvigsen et al. 2023 (arXiv:2211.11031) and their code. As published: expansion,
    start, rate and steps. Their code puts the value before the prompt's last token alone
    (`replacement: before_last`) and takes the MLP's first map in GPT2-XL (`linear: in`); the
    defaults here are those of EasyEdit and of the WISE paper, the last token and the map out. A
    radius is absolute there, and the decision is made at every pass anew.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {"radius": 0.1, "value_steps": 20}

    depth: float = Field(
        default=0.75, ge=0, le=1, description="The edited layer, as a fraction of all layers."
    )
    linear: Literal["in", "out"] = Field(
        default="out", description="The MLP's first linear map into its hidden width, or that out."
    )
    radius: float = Field(
        default=1.0,
        gt=0,
        description="What a new entry reaches, in usual distances between a prompt of general "
        "text and the one nearest to it.",
    )
    expansion: Expansion = Field(
        default="coverage",
        description="How an entry comes to hold an edit that asks for the same: it reaches as "
        "far, or also moves halfway.",
    )
    replacement: Replacement = Field(
        default="last",
        description="Where the value stands: at the prompt's last token, all over the prompt, all "
        "over it but for its last token (as in the published code), or everywhere.",
    )
    start: Literal["cold", "warm"] = Field(
        default="cold",
        description="What a value is sought from: chance, or what the map says there.",
    )
    learning_rate: float = Field(default=1.0, gt=0, description="Adam's learning rate.")
    value_steps: int = Field(default=100, ge=1, le=10_000, description="Adam's steps per edit.")

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return none: it changes no weights."""
        return ()

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the codebook of all examples, once.

        Raises:
            EditError: a loss became NaN or infinite, memory ran out, or general text does not
                tell how far apart prompts are.
        """
        layer = self.layer_of(model)
        path = model.architecture.mlp_modules(layer)[-1 if self.linear == "out" else 0]
        rows = encode_examples(model, examples.rows)
        prompts = [row.target.ids[: row.target.start] for row in rows]
        queries, said = _at_prompts(model, path, prompts)
        earlier = aux.carried if isinstance(aux.carried, _Entries) else None
        book = (
            Codebook(self.radius * _usual_distance(model, path, aux.general), self.expansion)
            if earlier is None
            else earlier.book.copy()
        )
        held = len(book.keys)
        entries = [
            book.take(query, (row.target,) if row.contrast is None else (row.target, row.contrast))
            for query, row in zip(queries, examples.rows, strict=True)
        ]
        first = [entries.index(entry) for entry in range(held, len(book.keys))]
        values = said[first] if self.start == "warm" else self._by_chance(said[first], seed)
        if earlier is not None:
            values = torch.cat([earlier.values, values])
        network = trainable_twin(model, ())
        losses = []
        # An entry's examples come one after the other. Entries do not see one another, so what is
        # sought for all of them at once is the same as one by one.
        for turn in _turns(entries):
            for start in range(0, len(turn), _ROWS):
                some = turn[start : start + _ROWS]
                places = [entries[row] for row in some]
                memory = GraceDelta(
                    strength=1.0,
                    module=path,
                    keys=queries[some],
                    values=values[places].requires_grad_(True),
                    radii=torch.full((len(some),), torch.inf),
                    targets=(),
                    replacement=self.replacement,
                )
                losses.append(
                    self._sought(
                        network, memory, examples.loss, [rows[i] for i in some], model.end_id
                    )
                )
                values[places] = memory.values.detach()
        memory = GraceDelta(
            strength=1.0,
            module=path,
            keys=torch.stack(book.keys),
            values=values,
            radii=torch.tensor(book.radii, device=model.device),
            targets=tuple(book.targets),
            replacement=self.replacement,
        )
        yield EpochEdit(memory, float(torch.cat(losses).mean()), _Entries(book, values))

    def _by_chance(self, like: Float[Tensor, "entries d_out"], seed: int) -> Tensor:
        random = generator_for("grace values", seed)
        return torch.rand(like.shape, generator=random).to(like)

    def _sought(
        self,
        network: PreTrainedModel,
        memory: GraceDelta,
        loss: LossKind,
        rows: Sequence[EncodedExample],
        pad_id: int,
    ) -> Float[Tensor, " rows"]:
        """Change the memory's values, one for each row, for the better; return the last losses."""
        values = memory.values
        optimiser = torch.optim.Adam([values], lr=self.learning_rate)
        losses = torch.zeros(len(rows))
        with memory.applied(network):
            for _ in range(self.value_steps):
                losses, values.grad = inner_gradient(
                    values, lambda: training_losses(network, loss, rows, pad_id)
                )
                optimiser.step()
        return losses


def _turns(entries: Sequence[int]) -> list[list[int]]:
    """Return which examples are the first of their entry, which the second, and so on."""
    turns: list[list[int]] = []
    seen: Counter[int] = Counter()
    for row, entry in enumerate(entries):
        if seen[entry] == len(turns):
            turns.append([])
        turns[seen[entry]].append(row)
        seen[entry] += 1
    return turns


def _at_prompts(
    model: LanguageModel, path: str, prompts: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "prompts d_in"], Float[Tensor, "prompts d_out"]]:
    """Return what a linear map reads and says at the last token of each prompt, in float32."""
    module = model.network.get_submodule(path)
    read, said = [], []
    for part in Prompts.batches(prompts, model.device):
        recording = prompt_activations(model.network, module, part)
        read.append(at_the_last(recording.input, part))
        said.append(at_the_last(recording.output, part))
    return torch.cat(read), torch.cat(said)


def _usual_distance(model: LanguageModel, path: str, corpus: Corpus) -> float:
    """Return the median distance between a prompt of general text and the one nearest to it.

    Raises:
        EditError: there is no such distance.
    """
    queries, _ = _at_prompts(model, path, general_prompts(corpus, _UNRELATED))
    distances = distances_between(queries, queries).fill_diagonal_(torch.inf)
    usual = float(distances.min(dim=1).values.median())
    if not 0 < usual < math.inf:
        raise EditError(
            f"A radius is measured in distances between prompts of general text, but the usual "
            f"distance in {len(queries)} of them is {usual}. Give more general text."
        )
    return usual
