"""The change of single senses of single tokens of a Backpack."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel
from torch import Tensor, nn

from tuner.backpack import BackpackForCausalLM, SenseOffsets
from tuner.editing.companions import Surroundings
from tuner.editing.delta import AdditiveDelta, check_real
from tuner.errors import BaseMismatch, ConfigError


@final
@dataclass(frozen=True)
class SenseDelta(AdditiveDelta):
    """A vector to add to each of some senses of some tokens; only these rows are stored.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §5, eq. 8.
    """

    pairs: Int[Tensor, "pairs 2"]
    """Token id and sense, each pair once."""
    vectors: Float[Tensor, "pairs width"]

    @property
    def changed(self) -> Collection[str]:
        """The names of the parameters that it writes to: none, as senses are not parameters."""
        return ()

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Edit `network` inside the context.

        Raises:
            BaseMismatch: the network is not a Backpack, or has fewer tokens, senses or dimensions.
        """
        model = _check_fit(self, network)
        with model.backpack.with_offsets(self._with_own_of(model)):
            yield

    def write(self, network: nn.Module) -> None:
        """Put the change into `network`, for good.

        Raises:
            BaseMismatch: the network is not a Backpack, or has fewer tokens, senses or dimensions.
        """
        model = _check_fit(self, network)
        model.backpack.set_offsets(self._with_own_of(model))

    def scaled(self, alpha: float) -> Self:
        """Return the change at `alpha` times its size."""
        return type(self)(self.pairs, self.vectors * alpha)

    def plus(self, other: Self) -> Self:
        """Return the sum of two changes of the same model."""
        both = torch.cat([self.pairs, other.pairs])
        pairs, place = torch.unique(both, dim=0, return_inverse=True)
        vectors = torch.cat([self.vectors, other.vectors])
        summed = vectors.new_zeros(len(pairs), vectors.shape[1]).index_add(0, place, vectors)
        return type(self)(pairs, summed)

    def can_change(self, blocks: Int[Tensor, "blocks length"]) -> Bool[Tensor, " blocks"]:
        """Return which blocks of text it can change at all: those with an edited token.

        The last token of a block predicts nothing.
        """
        return torch.isin(blocks[:, :-1], self.pairs[:, 0].cpu()).any(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return what must be stored, by name."""
        return {
            "pairs": self.pairs.detach().cpu().contiguous(),
            "vectors": self.vectors.detach().cpu().contiguous(),
        }

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the delta that `tensors()` described.

        Raises:
            ConfigError: they are not those of a change of senses.
        """
        if sorted(tensors) != ["pairs", "vectors"]:
            raise ConfigError(f"The parts {sorted(tensors)} form no change of senses.")
        pairs, vectors = tensors["pairs"], tensors["vectors"]
        whole = pairs.dtype is torch.int64 and pairs.ndim == 2 and pairs.shape[1] == 2
        real = vectors.is_floating_point() and vectors.ndim == 2
        if not whole or not real or len(pairs) != len(vectors):
            raise ConfigError(
                "A change of senses needs `pairs` (n × 2, int64) and `vectors` (n × width, "
                f"floating point), but got {tuple(pairs.shape)} of {pairs.dtype} and "
                f"{tuple(vectors.shape)} of {vectors.dtype}."
            )
        check_real("a change of senses", vectors)
        if len(torch.unique(pairs, dim=0)) < len(pairs):
            raise ConfigError("A change of senses must name each pair of token and sense once.")
        return cls(pairs, vectors)

    def describe(self) -> str:
        """Return how many senses are changed, and of how many tokens."""
        tokens = len(set(self.pairs[:, 0].tolist()))
        return f"{len(self.pairs)} senses of {tokens} tokens, {self.vectors.numel():,} numbers"

    def _with_own_of(self, model: BackpackForCausalLM) -> SenseOffsets:
        place = model.device
        delta = SenseDelta(self.pairs.to(place), self.vectors.to(place, model.dtype))
        own = model.backpack.offsets
        if own is not None:
            delta = SenseDelta(own.pairs, own.vectors.detach()).plus(delta)
        offsets = SenseOffsets(delta.pairs, delta.vectors)
        return offsets.requires_grad_(False)


def _check_fit(delta: SenseDelta, network: nn.Module) -> BackpackForCausalLM:
    if not isinstance(network, BackpackForCausalLM):
        raise BaseMismatch(
            f"The delta changes senses, and {type(network).__name__} has none; only a Backpack has."
        )
    config = network.config
    least = delta.pairs.amin(0).tolist() if len(delta.pairs) else [0, 0]
    most = delta.pairs.amax(0).tolist() if len(delta.pairs) else [0, 0]
    fits = min(least) >= 0 and most[0] < config.vocab_size and most[1] < config.num_senses
    if not fits or delta.vectors.shape[1] != config.n_embd:
        raise BaseMismatch(
            f"The delta's senses do not fit a Backpack of {config.vocab_size} tokens, "
            f"{config.num_senses} senses and width {config.n_embd}."
        )
    return network
