"""MEMIT: many facts at once, spread over a band of layers, by regularised least squares."""

from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tuner.editing.spreading import Factors, SpreadingEditor, Statistics, symmetric_solve


@final
class Memit(SpreadingEditor):
    """Writes R (λC + K₀K₀ᵀ + KKᵀ)⁻¹K into each layer (Meng et al. 2023, arXiv:2210.07229).

    K₀ are the keys of earlier batches: the sequential form (MEMIT-seq in Gupta et al. 2024).
    """

    covariance_weight: float = Field(
        default=15_000.0, gt=0, description="λ: how much usual text resists, per fact."
    )
    accumulate: bool = Field(
        default=True, description="Protect what earlier batches wrote, as usual text is."
    )

    def solve(
        self,
        keys: Float[Tensor, "d_in facts"],
        residuals: Float[Tensor, "d_out facts"],
        earlier: Float[Tensor, "d_in earlier"],
        known: Statistics,
    ) -> Factors:
        """Return R [(λC + K₀K₀ᵀ + KKᵀ)⁻¹K]ᵀ.

        With S = C⁻¹Q/λ and Q = (K₀ K), (λC + QQᵀ)⁻¹Q = S (I + QᵀS)⁻¹: one factor of C serves
        every λ and every set of facts, and what is left to solve is as small as their number.
        """
        protected = earlier if self.accumulate else earlier[:, :0]
        both = torch.cat([protected, keys], dim=1)
        spread = known.moment.solve(both) / self.covariance_weight
        eye = torch.eye(both.shape[1], dtype=both.dtype, device=both.device)
        # (I + QᵀS) is symmetric, so the inverse can be taken on the other side of S.
        right = symmetric_solve(eye + both.T @ spread, spread.T)
        return Factors(left=residuals, right=right[protected.shape[1] :])
