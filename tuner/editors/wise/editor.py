"""WISE: the edits in side memories of one MLP output map, which few prompts are read with."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from tuner.editing.activations import prompt_activations
from tuner.editing.editor import Auxiliary, Carried, EpochEdit
from tuner.editing.layers import OneLayerEditor
from tuner.editing.likelihood import EncodedExample, encode_examples, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts
from tuner.editing.sampling import prepend, sample_prefixes
from tuner.editing.task import Example, ExampleSet
from tuner.editors._training.inner_gradient import inner_gradient
from tuner.editors._training.loop import trainable_twin
from tuner.editors._training.rows import generator_for
from tuner.editors._training.unrelated_prompts import unrelated_prompts
from tuner.editors.wise.memory import WiseDelta, output_difference
from tuner.editors.wise.ties import DensityOf, ties_merged
from tuner.errors import EditError, TaskError

# As published: prefixes are five to ten tokens long.
_SHORTEST, _LONGEST = 5, 10
_TOP_K = 5
# As published: training ends where the loss is low and stands still.
_STANDSTILL = 1e-4
# Prompts that tell how much the map says.
_UNRELATED = 256


@final
@dataclass(frozen=True)
class _Sides(Carried):
    """The side memories of earlier batches, of which the last goes on learning."""

    usual: float
    """The mean norm of what the map says."""
    finished: tuple[Float[Tensor, "d_in d_out"], ...]
    finished_least: tuple[float, ...]
    """The least difference of each, over the edits that it learned."""
    change: Float[Tensor, "d_in d_out"]
    free: Bool[Tensor, "d_in d_out"]
    learned: int
    """How many edits the last one has learned."""
    least: float
    """Its least difference; of merged ones, that over all edits."""

    def begun(self, free: Bool[Tensor, "d_in d_out"]) -> "_Sides":
        """Return the sides with another one begun."""
        return replace(
            self,
            finished=(*self.finished, self.change),
            finished_least=(*self.finished_least, self.least),
            change=torch.zeros_like(self.change),
            free=free,
            learned=0,
            least=math.inf,
        )


@final
class Wise(OneLayerEditor):
    """Trains copies of one MLP output map, of which each sees a random share of the entries.

    A side memory learns its edits and, by a margin loss, to make a difference on their prompts and
    none on others; that difference then tells whose a prompt is. Side memories are merged into one,
    or kept side by side.

    Source: Wang et al. 2024 (arXiv:2405.14768) and their code. As published: shards, masks,
    density, steps, rates and the shares of β. Ours: edits are learned together, with several other
    prompts each; differences and changes are measured in what is usual for the map; thresholds are
    those of the finished memory, since all edits are known by then. They are lower than most that
    were published, since the budget's strength can only raise them.

    In a sequence of batches a side memory learns what comes until it has `edits_per_side`, and
    then another is begun; when `shards` of them are full they are merged, and what they became is
    trained on with a new mask. As published, the difference of an edit is read once, when it was
    learned. Ours: until then the side memories count together, where theirs leave the full ones
    out.
    """

    # Of one edit in a random model, the widest memory tells its prompt from others.
    smoke_settings: ClassVar[Mapping[str, object]] = {
        "most_steps": 60,
        "prefixes": 0,
        "shards": 1,
        "mask_share": 1.0,
        "density": 1.0,
        "unrelated": 16,
        "learning_rate": 0.3,
        "act_ratio": 0.88,
    }

    depth: float = Field(
        default=0.7, ge=0, le=1, description="The edited layer, as a fraction of all layers."
    )
    mode: Literal["merge", "retrieve"] = Field(
        default="merge",
        description="Whether the side memories become one, or are chosen from by the prompt.",
    )
    shards: int = Field(
        default=2, ge=1, le=64, description="Side memories, each for as many of the edits."
    )
    mask_share: float = Field(
        default=0.2, gt=0, le=1, description="Share of the matrix that a side memory may change."
    )
    density: float = Field(
        default=0.53, gt=0, le=1, description="Share of each change that is kept when merging."
    )
    density_of: DensityOf = Field(
        default="all",
        description="What density is a share of: all entries, as published, so that it trims "
        "nothing where mask_share is below it; or those that changed.",
    )
    edits_per_side: int = Field(
        default=500,
        ge=1,
        description="In a sequence of batches: edits after which another side memory is begun.",
    )
    learning_rate: float = Field(default=1.0, gt=0, description="Rate of gradient descent.")
    most_steps: int = Field(default=70, ge=1, le=10_000, description="Most steps per batch.")
    stop_below: float = Field(
        default=0.02, gt=0, description="End a batch where its loss is below this and stands still."
    )
    batch_size: int = Field(
        default=10, ge=1, description="Edits that are learned together; published: one by one."
    )
    weight_decay: float = Field(
        default=1e-5, ge=0, description="Decay of the entries that may change."
    )
    clamp: float = Field(
        default=50.0,
        gt=0,
        description="Greatest change of an entry, in root mean squares of the matrix.",
    )
    difference: float = Field(
        default=1.0,
        gt=0,
        description="Difference wanted on the edits' prompts, in norms of what the map usually "
        "says (β).",
    )
    outside_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of it that is allowed on other prompts (α/β).",
    )
    gap_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of it that must lie between the two (γ/β)."
    )
    act_ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of the least difference on an edit's prompt from which prompts are in "
        "scope.",
    )
    prefixes: int = Field(
        default=10, ge=0, le=64, description="Copies of each example behind what the model wrote."
    )
    unrelated: int = Field(
        default=8, ge=1, le=64, description="Other prompts for each edit, drawn once."
    )

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return none: it changes no weights."""
        return ()

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the side memories of all examples, once.

        Raises:
            EditError: a loss became NaN or infinite, memory ran out, an example is too long for
                its prefixes, or an edit made no difference.
        """
        layer = self.layer_of(model)
        path = model.architecture.mlp_modules(layer)[-1]
        training = _WiseTraining(self, model, path, examples, aux, seed)
        if aux.origin is not None:
            yield self._in_sequence(path, training, len(examples), aux.carried)
            return
        count = min(self.shards, len(examples))
        ends = [number * len(examples) // count for number in range(count + 1)]
        groups = [list(range(start, end)) for start, end in pairwise(ends)]
        changes = torch.stack([training.learned(group) for group in groups])
        if self.mode == "merge":
            changes = ties_merged(changes, self.density, self.density_of)[None]
            groups = [list(range(len(examples)))]
        least = [
            training.least_difference(change, group)
            for change, group in zip(changes, groups, strict=True)
        ]
        memory = WiseDelta(
            strength=1.0,
            module=path,
            changes=changes,
            thresholds=self.act_ratio * torch.tensor(least),
        )
        yield EpochEdit(memory, training.loss)

    def _in_sequence(
        self, path: str, training: "_WiseTraining", count: int, carried: Carried | None
    ) -> EpochEdit:
        """Return the memory after `count` further edits, which the last side memory learns."""
        sides = carried if isinstance(carried, _Sides) else training.first_side()
        if sides.learned >= self.edits_per_side:
            sides = self._next_side(sides, training)
        group = list(range(count))
        sides = replace(
            sides,
            change=training.further(sides.change, sides.free, group),
            learned=sides.learned + count,
        )
        changes = torch.stack([*sides.finished, sides.change])
        if self.mode == "merge":
            changes = ties_merged(changes, self.density, self.density_of)[None]
        sides = replace(
            sides, least=min(sides.least, training.least_difference(changes[-1], group))
        )
        least = (sides.least,) if self.mode == "merge" else (*sides.finished_least, sides.least)
        memory = WiseDelta(
            strength=1.0,
            module=path,
            changes=changes,
            thresholds=self.act_ratio * torch.tensor(least),
        )
        return EpochEdit(memory, training.loss, sides)

    def _next_side(self, sides: _Sides, training: "_WiseTraining") -> _Sides:
        """Return the side memories where the last one is full: another begun, or all merged."""
        free = training.free_entries()
        if self.mode == "retrieve":
            return sides.begun(free)
        if len(sides.finished) + 1 < self.shards:
            # The merged memory has one threshold, which goes on over all edits.
            return replace(sides.begun(free), least=sides.least)
        merged = ties_merged(
            torch.stack([*sides.finished, sides.change]), self.density, self.density_of
        )
        return replace(sides, finished=(), finished_least=(), change=merged, free=free, learned=0)


@final
class _WiseTraining:
    """The training of side memories, apart from which edits each of them learns."""

    def __init__(
        self,
        settings: Wise,
        model: LanguageModel,
        path: str,
        examples: ExampleSet,
        aux: Auxiliary,
        seed: int,
    ) -> None:
        self.settings = settings
        self.model = model
        self.path = path
        self.kind = examples.loss
        self.network = trainable_twin(model, ())
        self.module = model.network.get_submodule(path)
        weight: Tensor = self.network.get_parameter(f"{path}.weight").detach()
        self.weight = weight if model.architecture.transposed else weight.T
        self.rows = _with_prefixes(settings, model, examples.rows, aux, seed)
        others = unrelated_prompts(model, examples, aux, seed=seed)
        self.others = [list(islice(others, settings.unrelated)) for _ in examples.rows]
        self.usual = (
            aux.carried.usual
            if isinstance(aux.carried, _Sides)
            else self._usual_size(list(islice(others, _UNRELATED)))
        )
        self.random = generator_for("wise masks", seed)
        self.losses: list[float] = []

    @property
    def loss(self) -> float:
        """What the batches ended with, in the mean."""
        return math.fsum(self.losses) / len(self.losses)

    def learned(self, group: Sequence[int]) -> Float[Tensor, "d_in d_out"]:
        """Return the change of a new side memory that learns these examples."""
        return self.further(torch.zeros_like(self.weight), self.free_entries(), group)

    def free_entries(self) -> Bool[Tensor, "d_in d_out"]:
        """Return which entries a new side memory may change, drawn by chance."""
        chances = torch.rand(self.weight.shape, generator=self.random)
        return (chances < self.settings.mask_share).to(self.weight.device)

    def first_side(self) -> _Sides:
        """Return what a sequence begins with: one side memory that has learned nothing."""
        nothing = torch.zeros_like(self.weight)
        return _Sides(self.usual, (), (), nothing, self.free_entries(), 0, math.inf)

    def further(
        self,
        change: Float[Tensor, "d_in d_out"],
        free: Bool[Tensor, "d_in d_out"],
        group: Sequence[int],
    ) -> Float[Tensor, "d_in d_out"]:
        """Return a side memory's change after it learned these examples too."""
        for start in range(0, len(group), self.settings.batch_size):
            change = self._trained_on(change, free, group[start : start + self.settings.batch_size])
        return change

    def least_difference(self, change: Float[Tensor, "d_in d_out"], group: Sequence[int]) -> float:
        """Return the least difference that a change makes on the prompts of these examples.

        Raises:
            EditError: it makes none.
        """
        prompts = [_prompt_of(self.rows[index][0]) for index in group]
        least = min(
            float(output_difference(self._inputs(part), change, part.mask).min())
            for part in Prompts.batches(prompts, self.model.device)
        )
        if not least > 0:
            raise EditError(
                "The side memory makes no difference on the prompt of an edit, so that nothing "
                "tells it from others; raise learning_rate, mask_share or density."
            )
        return least

    def _trained_on(
        self,
        change: Float[Tensor, "d_in d_out"],
        free: Bool[Tensor, "d_in d_out"],
        some: Sequence[int],
    ) -> Float[Tensor, "d_in d_out"]:
        """Return a change trained further on some examples, where its entries are free to."""
        settings = self.settings
        rows = [row for index in some for row in self.rows[index]]
        inside = Prompts.of([_prompt_of(row) for row in rows], self.model.device)
        outside = Prompts.of(
            [other for index in some for other in self.others[index]], self.model.device
        )
        within, beyond = self._inputs(inside), self._inputs(outside)
        limit = settings.clamp * float(self.weight.square().mean().sqrt())
        # A leaf, whole: a view taken here would have no gradient where the consumer wants none.
        trained = change[None].clone().requires_grad_(True)
        memory = WiseDelta(
            strength=1.0, module=self.path, changes=trained, thresholds=torch.zeros(1)
        )

        def losses() -> Tensor:
            said = training_losses(self.network, self.kind, rows, self.model.end_id)
            moved = self._margin_loss(
                output_difference(within, trained[0], inside.mask),
                output_difference(beyond, trained[0], outside.mask),
            )
            return torch.stack((said.mean(), moved))

        previous = math.inf
        with memory.applied(self.network):
            for _ in range(settings.most_steps):
                values, gradient = inner_gradient(trained, losses)
                total = float(values.sum())
                if total <= settings.stop_below and abs(total - previous) <= _STANDSTILL:
                    break
                previous = total
                with torch.no_grad():
                    # The decay is masked too: what is not free must stay as it is to the bit.
                    slope = gradient + settings.weight_decay * (self.weight + trained)
                    trained -= settings.learning_rate * torch.where(free, slope, 0.0)
                    trained.clamp_(-limit, limit)
        self.losses.append(previous)
        return trained.detach()[0]

    def _margin_loss(
        self, inside: Float[Tensor, " prompts"], outside: Float[Tensor, " others"]
    ) -> Float[Tensor, ""]:
        """Return how much differences are too small inside, too great outside, or too near."""
        settings = self.settings
        wanted = settings.difference
        inside, outside = inside / self.usual, outside / self.usual
        gaps = inside[:, None] - outside[None, :]
        return (
            (outside - settings.outside_share * wanted).relu().mean()
            + (wanted - inside).relu().mean()
            + (settings.gap_share * wanted - gaps).relu().mean()
        )

    def _inputs(self, prompts: Prompts) -> Float[Tensor, "prompts width d_in"]:
        return prompt_activations(self.model.network, self.module, prompts).input

    def _usual_size(self, prompts: Sequence[Sequence[int]]) -> float:
        """Return the mean norm of what the map says."""
        sizes = []
        for part in Prompts.batches(prompts, self.model.device):
            output = prompt_activations(self.model.network, self.module, part).output
            sizes.append(output.float().norm(dim=-1)[part.mask])
        return float(torch.cat(sizes).mean())


def _with_prefixes(
    settings: Wise, model: LanguageModel, rows: Sequence[Example], aux: Auxiliary, seed: int
) -> list[list[EncodedExample]]:
    """Return each example as it is and behind each prefix."""
    span = _LONGEST - _SHORTEST + 1
    lengths = [_SHORTEST + number % span for number in range(settings.prefixes)]
    starts = [""] * len(lengths)
    prefixes = sample_prefixes(
        model, starts, new_tokens=lengths, top_k=_TOP_K, seed=seed, cache=aux.cache
    )
    plain = encode_examples(model, rows)
    try:
        return [
            [first, *encode_examples(model, [_behind(model, prefix, row) for prefix in prefixes])]
            for first, row in zip(plain, rows, strict=True)
        ]
    except TaskError as error:
        raise EditError(f"No room for `prefixes`: {error}") from None


def _behind(model: LanguageModel, prefix: str, row: Example) -> Example:
    return row.model_copy(update={"prompt": prepend(model, prefix, row.prompt)})


def _prompt_of(row: EncodedExample) -> tuple[int, ...]:
    return row.target.ids[: row.target.start]
