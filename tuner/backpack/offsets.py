"""Additive vectors for single (token, sense) pairs: what sense finetuning learns."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

SENSES = "senses"
"""What the table of all senses of all tokens is called beside the names of parameters."""


@final
class SenseOffsets(nn.Module):
    """A vector to add to each of some senses of some tokens.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §5: c′(x)_ℓ = c(x)_ℓ + Δ_{x,ℓ} for the pairs
    that were selected. Only their rows are stored, not a table of the whole vocabulary.
    """

    pairs: Tensor
    """Pairs × 2: token id and sense, no pair twice."""

    def __init__(
        self,
        pairs: Int[Tensor, "pairs 2"],
        vectors: Float[Tensor, "pairs width"],
        beneath: "SenseOffsets | None" = None,
    ) -> None:
        super().__init__()
        self.register_buffer("pairs", pairs)
        self.vectors = nn.Parameter(vectors)
        self.beneath = beneath
        """Others, to which these are added: those of the model while new ones are trained."""

    def touched(self, ids: Int[Tensor, "*places"]) -> Bool[Tensor, "*places"]:
        """Return for each place whether its token has an offset."""
        has_offset = torch.isin(ids, self.pairs[:, 0])
        return has_offset if self.beneath is None else has_offset | self.beneath.touched(ids)

    def at(self, ids: Int[Tensor, "*places"], senses: int) -> Float[Tensor, "*places senses width"]:
        """Return the vectors to add to the senses of each place, zero where there is none."""
        tokens, place = torch.unique(ids, return_inverse=True)
        present = torch.isin(self.pairs[:, 0], tokens)
        token, sense = self.pairs[present].T.contiguous()
        rows = torch.searchsorted(tokens, token) * senses + sense
        width = self.vectors.shape[1]
        table = self.vectors.new_zeros(len(tokens) * senses, width)
        table = table.index_add(0, rows, self.vectors[present])
        added = table.view(len(tokens), senses, width)[place]
        return added if self.beneath is None else added + self.beneath.at(ids, senses)
