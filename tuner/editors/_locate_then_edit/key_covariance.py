"""Second-moment statistics of a linear layer's inputs on general text."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from tuner.editing.activations import recorded
from tuner.editing.corpus import Corpus
from tuner.editing.model import LanguageModel
from tuner.errors import EditError
from tuner.files.cache import Cache, Key

_ROWS = 32
# Below this many tokens per input dimension the smallest directions are mostly noise.
_PLENTY = 5
_RIDGE = 1e-3
# Rounding alone leaves directions that no text uses at zero or a little below it.
_JITTER = 1e-10


@final
@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of C, ascending, and their directions as columns."""

    values: Float[Tensor, " d_in"]
    directions: Float[Tensor, "d_in d_in"]


@final
@dataclass(frozen=True)
class SecondMoment:
    """C = E[k kᵀ] over the tokens of a corpus, in float64, and what is solved with it.

    The factor and the spectrum are made once and, where there is a cache, serve every trial.

    Source: Meng et al. 2022 (arXiv:2202.05262), §3.1; the keys k are the inputs of the second
    matrix of an MLP.
    """

    matrix: Float[Tensor, "d_in d_in"]
    tokens: int
    cache: Cache | None = None
    key: Key = field(default_factory=dict)
    """All that C depends on; looked at with a cache alone."""

    def solve(self, keys: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """Return C⁻¹ · keys.

        Raises:
            EditError: there were fewer tokens than input dimensions.
        """
        return torch.cholesky_solve(keys, self.factor)

    def solve_beside(
        self,
        other: Float[Tensor, "d_in d_in"],
        weight: float,
        keys: Float[Tensor, "d_in n"],
    ) -> Float[Tensor, "d_in n"]:
        """Return (weight · C + other)⁻¹ · keys, for an `other` that is positive semidefinite.

        Raises:
            EditError: there were fewer tokens than input dimensions, or the sum is singular.
        """
        whole = weight * (self.factor @ self.factor.T) + other
        factor, failed = torch.linalg.cholesky_ex(whole)
        if int(failed):
            raise EditError("The statistics of the keys are singular; give more varied text.")
        solved: Tensor = torch.cholesky_solve(keys, factor)
        return solved

    @cached_property
    def factor(self) -> Float[Tensor, "d_in d_in"]:
        """The lower Cholesky factor of C, with a ridge where the sample is small.

        Raises:
            EditError: there were fewer tokens than input dimensions.
        """
        ridge = self._ridge()
        return self._kept("factor", lambda: {"factor": self._factor(ridge)})["factor"]

    @cached_property
    def spectrum(self) -> Spectrum:
        """The eigendecomposition of C."""
        tensors = self._kept("spectrum", self._eigen)
        return Spectrum(tensors["values"], tensors["directions"])

    def _factor(self, ridge: float) -> Tensor:
        eye = torch.eye(len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device)
        scale = float(self.matrix.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(self.matrix + ridge * scale * eye)
        if int(failed) and ridge < _RIDGE:
            warnings.warn(
                f"The general text leaves input dimensions unused: {_RIDGE:g} of the mean variance "
                "was added to each.",
                stacklevel=5,
            )
            return self._factor(_RIDGE)
        if int(failed):
            raise EditError("The statistics of the keys are singular; give more varied text.")
        factor: Tensor = lower
        return factor

    def _eigen(self) -> dict[str, Tensor]:
        values, directions = torch.linalg.eigh(self.matrix)
        return {"values": values, "directions": directions}

    def _ridge(self) -> float:
        width = len(self.matrix)
        if self.tokens < width:
            raise EditError(
                f"The statistics of the keys need at least {width:,} tokens of general text, one "
                f"per input dimension, but got {self.tokens:,}. Give more general text."
            )
        if self.tokens >= _PLENTY * width:
            return _JITTER
        warnings.warn(
            f"{self.tokens:,} tokens are few for {width:,} input dimensions ({_PLENTY} per "
            f"dimension are advised): {_RIDGE:g} of the mean variance was added to each.",
            stacklevel=4,
        )
        return _RIDGE

    def _kept(self, kind: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        saved = self.cache.load(kind, self.key) if self.cache else None
        if saved is None:
            saved = make()
            if self.cache:
                kept = {name: value.cpu().contiguous() for name, value in saved.items()}
                self.cache.save(kind, self.key, kept)
        return {name: value.to(self.matrix.device) for name, value in saved.items()}


def second_moments(
    model: LanguageModel, corpus: Corpus, layers: Sequence[int], cache: Cache | None
) -> dict[int, SecondMoment]:
    """Return C of the MLP output map's inputs for each of `layers`, from one pass over a corpus.

    Raises:
        EditError: an activation is NaN or infinite.
    """
    keys = {layer: _key(model, corpus, layer) for layer in layers}
    matrices: dict[int, Tensor] = {}
    for layer in layers:
        saved = cache.load("second_moment", keys[layer]) if cache else None
        if saved is not None:
            matrices[layer] = saved["matrix"].to(model.device)
    missing = [layer for layer in layers if layer not in matrices]
    if missing:
        for layer, matrix in _collected(model, corpus, missing).items():
            matrices[layer] = matrix
            if cache:
                cache.save("second_moment", keys[layer], {"matrix": matrix.cpu()})
    return {
        layer: SecondMoment(matrices[layer], corpus.blocks.numel(), cache, keys[layer])
        for layer in layers
    }


@torch.no_grad()
def _collected(model: LanguageModel, corpus: Corpus, layers: Sequence[int]) -> dict[int, Tensor]:
    modules = {
        layer: model.network.get_submodule(model.architecture.mlp_modules(layer)[-1])
        for layer in layers
    }
    sums: dict[int, Tensor] = {}
    for rows in torch.split(corpus.blocks, _ROWS):
        with ExitStack() as stack:
            records = {
                layer: stack.enter_context(recorded(module, len(rows)))
                for layer, module in modules.items()
            }
            model.network.base_model(input_ids=rows.to(model.device), use_cache=False)
        for layer, record in records.items():
            # In single precision, rounding would hide the directions that text hardly uses.
            keys = record.input.flatten(0, 1).double()
            product = keys.T @ keys
            sums[layer] = sums[layer] + product if layer in sums else product
    count = corpus.blocks.numel()
    for layer, total in sums.items():
        if not math.isfinite(float(total.sum())):
            raise EditError(f"The activations of layer {layer} hold NaN or infinite values.")
    return {layer: total / count for layer, total in sums.items()}


def _key(model: LanguageModel, corpus: Corpus, layer: int) -> Key:
    return {
        "model": model.fingerprint,
        "corpus": corpus.hash,
        "layer": layer,
        "device": model.device_name,
        "attention": model.kernel,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
