"""EMMET: many facts at once, written exactly, where MEMIT compromises."""

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
class Emmet(SpreadingEditor):
    """Writes R (KᵀC⁻¹K + λₑI)⁻¹KᵀC⁻¹ into each layer (Gupta et al. 2024, arXiv:2403.14236).

    Of several batches each is written without regard to those before it.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        **SpreadingEditor.smoke_settings,
        "regulariser": 1e-3,
    }

    width: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Width of the band, as a fraction of all layers; published with one layer.",
    )
    covariance_weight: float = Field(
        default=1.0, gt=0, description="λ on C; it matters only beside the regulariser."
    )
    regulariser: float = Field(
        default=0.1, ge=0, description="λₑ: how far facts may be missed; unused for a single fact."
    )

    def solve(
        self,
        keys: Float[Tensor, "d_in facts"],
        residuals: Float[Tensor, "d_out facts"],
        protected: Float[Tensor, "d_in d_in"] | None,
        moment: SecondMoment,
    ) -> Factors:
        """Return R (KᵀS + λₑI)⁻¹Sᵀ with S = C⁻¹K/λ; `protected` has no part in it."""
        spread = moment.solve(keys) / self.covariance_weight
        facts = keys.shape[1]
        slack = self.regulariser if facts > 1 else 0.0
        eye = torch.eye(facts, dtype=keys.dtype, device=keys.device)
        return Factors(
            left=residuals, right=symmetric_solve(keys.T @ spread + slack * eye, spread.T)
        )
