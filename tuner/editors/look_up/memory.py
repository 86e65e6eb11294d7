"""A look-up cache: prompts near a stored one get its stored target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, NonNegativeInt
from torch import Tensor
from transformers import PreTrainedModel

from tuner.deltas.memory.answering import AnsweringMemory, Asked
from tuner.deltas.memory.distances import distances_between
from tuner.deltas.memory.memory import MemoryState
from tuner.editing.companions import Surroundings
from tuner.editing.delta import check_real
from tuner.editing.prompts import Prompts, Routes
from tuner.editing.task import Example
from tuner.errors import BaseMismatch, ConfigError


@final
class LookUpState(MemoryState):
    """What must be known of a look-up cache beside its keys."""

    kind: Literal["look_up"] = "look_up"
    targets: tuple[tuple[NonNegativeInt, ...], ...]
    threshold: float = Field(gt=0, allow_inf_nan=False)
    logit: float = Field(allow_inf_nan=False)
    end: NonNegativeInt


@final
@dataclass(frozen=True)
class LookUpDelta(AnsweringMemory):
    """Keys of prompts with their targets as token ids, which are said word by word.

    A prompt is in scope of the nearest key if it is nearer than `threshold`, in Euclidean
    distance. After its target comes the token `end`.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4, "LU"; here keys leave out padding.
    """

    keys: Float[Tensor, "entries hidden"]
    targets: tuple[tuple[int, ...], ...]
    threshold: float
    logit: float
    """What the stored token gets where all others get 0."""
    end: int
    state_type: ClassVar[type[MemoryState]] = LookUpState

    def check_fit(self, network: PreTrainedModel) -> None:
        """Verify that the network has states as wide as the keys, and knows all tokens.

        Raises:
            BaseMismatch: it does not.
        """
        width, tokens = int(network.config.hidden_size), int(network.config.vocab_size)
        if self.keys.shape[1] != width:
            raise BaseMismatch(
                f"The keys of the look-up cache are {self.keys.shape[1]} numbers wide, and the "
                f"model's states {width}."
            )
        highest = max((self.end, *(token for target in self.targets for token in target)))
        if highest >= tokens:
            raise BaseMismatch(
                f"The look-up cache says token {highest}, and the model knows {tokens}."
            )

    def route(self, network: PreTrainedModel, prompts: Prompts) -> Routes:
        """Return the route of each prompt by the distance to its nearest key."""
        return self._nearest(mean_states(network, prompts))

    def routes_before(
        self,
        network: PreTrainedModel,
        texts: Int[Tensor, "texts length"],
        ends: Sequence[int],
    ) -> tuple[Routes, ...]:
        """Return the routes of the texts' beginnings, from one pass over the longest."""
        sums = last_states(network, Prompts.whole(texts[:, : max(ends)])).cumsum(dim=1)
        return tuple(self._nearest(sums[:, end - 1] / end) for end in ends)

    def _nearest(self, states: Float[Tensor, "prompts hidden"]) -> Routes:
        distance, entries = distances_between(states, self.keys.to(states)).min(dim=1)
        return Routes(entries, distance / self.threshold)

    def entries_of(self, edits: Sequence[Example]) -> list[int] | None:
        """Return the entries in their order, if there are as many as edits."""
        return list(range(len(edits))) if len(edits) == len(self.targets) else None

    def answers(
        self, network: PreTrainedModel, asked: Sequence[Asked]
    ) -> list[Float[Tensor, "places tokens"]]:
        """Return the stored tokens, one after the other, whatever was said instead."""
        answers = []
        for row in asked:
            places = len(row.continuation) + 1
            target = self.targets[row.entry][:places]
            said = torch.tensor([*target, *[self.end] * (places - len(target))])
            logits = torch.zeros(places, network.config.vocab_size)
            answers.append(logits.scatter(1, said[:, None], self.logit))
        return answers

    def tensors(self) -> dict[str, Tensor]:
        """Return the keys."""
        return {"keys": self.keys.cpu().contiguous()}

    @property
    def state(self) -> LookUpState:
        """What must be known beside the keys."""
        return LookUpState(
            strength=self.strength,
            targets=self.targets,
            threshold=self.threshold,
            logit=self.logit,
            end=self.end,
        )

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the cache that `state` and `tensors()` described.

        Raises:
            ConfigError: they do not fit together.
        """
        keys = tensors.get("keys")
        if (
            not isinstance(state, LookUpState)
            or keys is None
            or keys.ndim != 2
            or not len(keys) == len(state.targets) > 0
        ):
            raise ConfigError("A look-up cache needs one key for each of its targets.")
        check_real("the keys of a look-up cache", keys)
        return cls(state.strength, keys, state.targets, state.threshold, state.logit, state.end)

    def describe(self) -> str:
        """Return the number of entries and of numbers stored."""
        return f"{len(self.targets)} entries, {self.keys.numel():,} numbers"


@torch.no_grad()
def last_states(
    network: PreTrainedModel, prompts: Prompts
) -> Float[Tensor, "prompts width hidden"]:
    """Return what the last layer says of each token of prompts, in float32."""
    states: Tensor = network.base_model(
        input_ids=prompts.ids,
        attention_mask=prompts.mask.long(),
        position_ids=prompts.positions,
        use_cache=False,
    ).last_hidden_state
    return states.float()


def mean_states(network: PreTrainedModel, prompts: Prompts) -> Float[Tensor, "prompts hidden"]:
    """Return the mean over its tokens of what the last layer says of each prompt, in float32."""
    total = (last_states(network, prompts) * prompts.mask[..., None]).sum(dim=1)
    return total / prompts.mask.sum(dim=1, keepdim=True)
