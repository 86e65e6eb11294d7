"""What a matrix usually reads: the uncentred covariance of its inputs on general text."""

import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from tuner.cache import Cache, Key
from tuner.editing.activations import recorded
from tuner.editing.corpus import Corpus
from tuner.editing.model import LanguageModel
from tuner.errors import EditError

_ROWS = 32
# Below this many tokens per input dimension the smallest directions are mostly noise.
_PLENTY = 5
_RIDGE = 1e-3
# Rounding alone leaves directions that no text uses at zero or a little below it.
_JITTER = 1e-10


@final
@dataclass(frozen=True)
class SecondMoment:
    """C = E[k kᵀ] over the tokens of a corpus, in float64, with one factor for all uses.

    Source: Meng et al. 2022 (arXiv:2202.05262), §3.1; the keys k are the inputs of the second
    matrix of an MLP.
    """

    matrix: Float[Tensor, "d_in d_in"]
    tokens: int

    @cached_property
    def factor(self) -> Float[Tensor, "d_in d_in"]:
        """The lower Cholesky factor of C, with a ridge where the sample is small.

        Raises:
            EditError: there were fewer tokens than input dimensions.
        """
        width = len(self.matrix)
        if self.tokens < width:
            raise EditError(
                f"The statistics of the keys need at least {width:,} tokens of general text, one "
                f"per input dimension, but got {self.tokens:,}. Give more general text."
            )
        scale = float(self.matrix.diagonal().mean())
        ridge = _JITTER
        if self.tokens < _PLENTY * width:
            ridge = _RIDGE
            warnings.warn(
                f"{self.tokens:,} tokens are few for {width:,} input dimensions ({_PLENTY} per "
                f"dimension are advised): {ridge:g} of the mean variance was added to each.",
                stacklevel=2,
            )
        eye = torch.eye(width, dtype=self.matrix.dtype, device=self.matrix.device)
        factor: Tensor = torch.linalg.cholesky(self.matrix + ridge * scale * eye)
        return factor

    def solve(self, keys: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """Return C⁻¹ · keys."""
        return torch.cholesky_solve(keys, self.factor)


@final
@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of C, ascending, and their directions as columns."""

    values: Float[Tensor, " d_in"]
    directions: Float[Tensor, "d_in d_in"]


def second_moments(
    model: LanguageModel, corpus: Corpus, layers: Sequence[int], cache: Cache | None
) -> dict[int, SecondMoment]:
    """Return C of the MLP output map's inputs for each of `layers`, from one pass over a corpus.

    Raises:
        EditError: an activation is NaN or infinite.
    """
    found: dict[int, SecondMoment] = {}
    for layer in layers:
        saved = cache.load("second_moment", _key(model, corpus, layer)) if cache else None
        if saved is not None:
            matrix = saved["matrix"].to(model.device)
            found[layer] = SecondMoment(matrix, corpus.blocks.numel())
    missing = [layer for layer in layers if layer not in found]
    if missing:
        for layer, matrix in _collected(model, corpus, missing).items():
            found[layer] = SecondMoment(matrix, corpus.blocks.numel())
            if cache:
                cache.save("second_moment", _key(model, corpus, layer), {"matrix": matrix.cpu()})
    return found


def spectrum(
    model: LanguageModel, corpus: Corpus, layer: int, moment: SecondMoment, cache: Cache | None
) -> Spectrum:
    """Return the eigendecomposition of a layer's C."""
    key = _key(model, corpus, layer)
    saved = cache.load("spectrum", key) if cache else None
    if saved is None:
        values, directions = torch.linalg.eigh(moment.matrix)
        saved = {"values": values.cpu(), "directions": directions.cpu().contiguous()}
        if cache:
            cache.save("spectrum", key, saved)
    device = moment.matrix.device
    return Spectrum(saved["values"].to(device), saved["directions"].to(device))


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
                layer: stack.enter_context(recorded(module)) for layer, module in modules.items()
            }
            model.network.base_model(input_ids=rows.to(model.device), use_cache=False)
        for layer, record in records.items():
            keys = record.input.flatten(0, 1).float()
            product = (keys.T @ keys).double()
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
        "device": model.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
