"""AlphaEdit: MEMIT's facts, written only where usual text has next to nothing."""

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tuner.editors._locate_then_edit.key_covariance import SecondMoment, Spectrum
from tuner.editors._locate_then_edit.layer_band_editor import (
    Factors,
    SpreadingEditor,
    symmetric_solve,
)
from tuner.errors import EditError


@final
class AlphaEdit(SpreadingEditor):
    """Writes the regularised least-squares change within the null space of C.

    Source: Fang et al. 2025 (arXiv:2410.02355) and their code. With U the directions of small
    eigenvalues of C, ΔWᵀ = U a and (Uᵀ(KKᵀ + K₀K₀ᵀ)U + L₂I) a = UᵀKRᵀ, where K₀ are the keys of
    earlier batches, each as read when its batch was written.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        **SpreadingEditor.smoke_settings,
        "null_share": 0.9,
        "regulariser": 1e-3,
    }

    regulariser: float = Field(default=10.0, gt=0, description="L₂: weight of the change's norm.")
    null_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of all directions that count as free, those of least variance; by "
        "default `threshold` decides.",
    )
    threshold: float = Field(
        default=2e-2,
        gt=0,
        description="Directions of less variance count as free. In units of the activations, so "
        "it carries over to no other model.",
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
        """Return R [B (L₂I + BᵀB)⁻¹]ᵀ Uᵀ, with B = UᵀK.

        Equal to the solution in the class docstring by the push-through identity; what is left
        to solve is as small as the number of facts. After earlier batches L₂I is joined by
        UᵀK₀K₀ᵀU, and what is solved first is as large as the free space.

        Raises:
            EditError: no direction counts as free.
        """
        free = self._free(moment.spectrum)
        seen = free.T @ keys
        eye = torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
        if protected is None:
            solved = symmetric_solve(self.regulariser * eye + seen.T @ seen, seen.T)
        else:
            held = free.T @ protected @ free
            held.diagonal().add_(self.regulariser)
            spread = symmetric_solve(held, seen)
            solved = symmetric_solve(eye + seen.T @ spread, spread.T)
        return Factors(left=residuals, right=solved @ free.T)

    def _free(self, spectrum: Spectrum) -> Float[Tensor, "d_in free"]:
        count = (
            int((spectrum.values < self.threshold).sum())
            if self.null_share is None
            else max(1, round(self.null_share * len(spectrum.values)))
        )
        if count == 0:
            raise EditError(
                f"No direction has less variance than {self.threshold:g} (the least is "
                f"{float(spectrum.values[0]):.2g}); raise `threshold`, or give `null_share`."
            )
        return spectrum.directions[:, :count]
