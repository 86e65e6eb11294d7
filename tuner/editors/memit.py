"""MEMIT: many facts at once, spread over a band of layers, by regularised least squares."""

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tuner.editors._locate_then_edit.key_covariance import SecondMoment
from tuner.editors._locate_then_edit.layer_band_editor import (
    Factors,
    SpreadingEditor,
    symmetric_solve,
)


@final
class Memit(SpreadingEditor):
    """Writes R (λC + K₀K₀ᵀ + KKᵀ)⁻¹K into each layer (Meng et al. 2023, arXiv:2210.07229).

    K₀ are the keys of earlier batches, each as read when its batch was written: the sequential
    form (MEMIT-seq in the code of Fang et al. 2025, arXiv:2410.02355).
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        **SpreadingEditor.smoke_settings,
        "covariance_weight": 1e-3,
    }

    covariance_weight: float = Field(
        default=15_000.0, gt=0, description="λ: how much usual text resists, per fact."
    )
    accumulate: bool = Field(
        default=True, description="Protect what earlier batches wrote, as usual text is."
    )

    @property
    def protects_earlier(self) -> bool:
        """Whether later batches are to know the keys of this one."""
        return self.accumulate

    def solve(
        self,
        keys: Float[Tensor, "d_in facts"],
        residuals: Float[Tensor, "d_out facts"],
        protected: Float[Tensor, "d_in d_in"] | None,
        moment: SecondMoment,
    ) -> Factors:
        """Return R [(λC + K₀K₀ᵀ + KKᵀ)⁻¹K]ᵀ.

        With A = λC + K₀K₀ᵀ and S = A⁻¹K, (A + KKᵀ)⁻¹K = S (I + KᵀS)⁻¹. Without earlier batches
        one factor of C serves every λ and every set of facts, and what is left to solve is as
        small as their number.
        """
        if protected is None:
            spread = moment.solve(keys) / self.covariance_weight
        else:
            spread = moment.solve_beside(protected, self.covariance_weight, keys)
        eye = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
        # (I + KᵀS) is symmetric, so the inverse can be taken on the other side of S.
        return Factors(left=residuals, right=symmetric_solve(eye + keys.T @ spread, spread.T))
