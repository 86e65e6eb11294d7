"""How each position weighs the senses of the positions before it."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@final
@dataclass(frozen=True)
class Contextualisation:
    """Queries and keys of the last, sense-wise attention. No change of senses changes them."""

    query: Float[Tensor, "batch senses positions key_width"]
    key: Float[Tensor, "batch senses length key_width"]
    allowed: Bool[Tensor, "#batch 1 positions length"]

    def scores(self) -> Float[Tensor, "batch senses positions length"]:
        """Return what the softmax over positions takes, in single precision at least."""
        scores: Tensor = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5
        precise = torch.promote_types(scores.dtype, torch.float32)
        # Not -inf: a position of padding may see nothing at all, and must not become NaN.
        return scores.to(precise).masked_fill(~self.allowed, torch.finfo(precise).min)

    def weights(self) -> Float[Tensor, "batch senses positions length"]:
        """Return α: for each sense, how much each position takes from each position before it."""
        return torch.softmax(self.scores(), dim=-1).to(self.query.dtype)

    def at(self, positions: Int[Tensor, " kept"]) -> "Contextualisation":
        """Return the same for some of the positions only."""
        return Contextualisation(
            self.query[:, :, positions], self.key, self.allowed[:, :, positions]
        )


def mix(
    weights: Float[Tensor, "batch senses positions length"],
    senses: Float[Tensor, "batch length senses width"],
) -> Float[Tensor, "batch positions width"]:
    """Return Σ_ℓ Σ_j α_{tjℓ} c(x_j)_ℓ for each position t.

    Source: Hewitt et al. 2023 (arXiv:2305.16765), §3.
    """
    batch, count, positions, length = weights.shape
    # One product with the sum over senses and positions inside: no output per sense is kept.
    flat = weights.permute(0, 2, 3, 1).reshape(batch, positions, length * count)
    return flat @ senses.reshape(batch, length * count, senses.shape[-1])
