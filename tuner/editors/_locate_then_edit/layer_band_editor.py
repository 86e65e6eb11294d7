"""Edits that write many facts into a band of MLP output maps: what MEMIT and its kin share."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.editing.activations import subject_activations
from tuner.editing.companions import Companions
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.editor import Auxiliary, Carried, EpochEdit
from tuner.editing.layers import LayerBandEditor
from tuner.editing.model import LanguageModel
from tuner.editing.sampling import sample_prefixes
from tuner.editing.subject import LocatedPrompt, locate_subject
from tuner.editing.task import Example, ExampleSet
from tuner.editors._locate_then_edit.key_covariance import SecondMoment, second_moments
from tuner.editors._locate_then_edit.target_editor import TargetEditor
from tuner.editors._locate_then_edit.target_vectors import target_vectors
from tuner.errors import EditError
from tuner.files.cache import Cache

_STARTS = ("The", "Therefore", "Because", "I", "You")
_PREFIX_TOKENS = 9  # ten with the word that each starts with
_TOP_K = 5


@final
@dataclass(frozen=True)
class KeyMoments(Carried):
    """Σ kkᵀ over the facts of earlier batches, per layer, each key as its own batch left it.

    Source: the code of MEMIT-seq and AlphaEdit (Fang et al. 2025, arXiv:2410.02355), which reads
    the keys of a batch once, after the whole of it is written.
    """

    sums: Mapping[int, Float[Tensor, "d_in d_in"]]


class SpreadingEditor(LayerBandEditor, TargetEditor):
    """Finds what the last layer of a band must say, and shares the change among the band.

    A subclass solves one layer: given the keys that facts have there and the residuals that they
    should add, it returns the change of the map.

    Source: Meng et al. 2023 (arXiv:2210.07229), algorithm 1, with the details of their code.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {**TargetEditor.smoke_settings, "depth": 0.0}

    depth: float = Field(
        default=0.5, ge=0, le=1, description="The last edited layer, as a fraction of all layers."
    )
    width: float = Field(
        default=0.25, gt=0, le=1, description="Width of the band, as a fraction of all layers."
    )
    clamp: float = Field(
        default=0.75, gt=0, description="Greatest change of a target vector, in its own norms."
    )
    prefixes: int = Field(
        default=5, ge=0, le=64, description="Model-written contexts in which the facts must hold."
    )

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return the map out of each layer's MLP: it changes no others."""
        return model.architecture.mlp_out_weights(model.network)

    @classmethod
    def prepare(cls, model: LanguageModel, aux: Auxiliary) -> None:
        """Take the second moments of all layers' keys, and what is solved with them.

        Raises:
            EditError: there were fewer tokens than input dimensions.
        """
        layers = range(model.layer_count)
        for moment in second_moments(model, aux.general, layers, aux.cache).values():
            _ = moment.factor

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the model has the layers, and an MLP of linear maps in each.

        Raises:
            ConfigError: it has not.
        """
        for layer in self.layers(model.layer_count):
            model.architecture.mlp_modules(layer)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change of all layers of the band, once.

        `seed` has no part in it: contexts are drawn by `prefix_seed`, so that trials share them.

        Raises:
            EditError: a subject does not stand in its prompt, the statistics need more text, or a
                loss became NaN or infinite.
        """
        origin = aux.origin or model
        layers = self.layers(model.layer_count)
        # Written by the unedited model in every batch.
        contexts = _contexts(origin, self.prefixes, self.prefix_seed, aux.cache)
        settings = self.target_settings(layers[-1], "layer", contexts)
        # Later batches start from a model that no other trial will ever see again.
        cache = aux.cache if model is origin else None
        targets = target_vectors(model, examples, settings, cache)
        # The statistics are the unedited model's too: no batch changes what text usually is.
        moments = second_moments(origin, aux.general, layers, aux.cache)
        names = {layer: model.architecture.mlp_modules(layer)[-1] for layer in layers}
        network = model.twin(own=[f"{name}.weight" for name in names.values()])
        protected = _sums_of(aux.carried)
        changes: dict[str, LowRank] = {}
        for index, layer in enumerate(layers):
            module = network.get_submodule(names[layer])
            keys = _keys(network, module, model, examples, contexts)
            now = _outputs(network, model, examples, layers[-1])
            residuals = ((targets - now) / (len(layers) - index)).T
            change = self.solve(keys, residuals, protected.get(layer), moments[layer])
            stored = factored(change, transposed=model.architecture.transposed)
            changes[f"{names[layer]}.weight"] = stored
            WeightDelta({f"{names[layer]}.weight": stored}).write(network)
        yield EpochEdit(WeightDelta(changes))

    @property
    def protects_earlier(self) -> bool:
        """Whether later batches of a sequence are to know the keys of this one."""
        return False

    def carry(
        self, model: LanguageModel, examples: ExampleSet, step: EpochEdit, aux: Auxiliary
    ) -> KeyMoments | None:
        """Return Σ kkᵀ with the keys of this batch, read on the model that it left."""
        if not self.protects_earlier:
            return None
        contexts = _contexts(aux.origin or model, self.prefixes, self.prefix_seed, aux.cache)
        sums = dict(_sums_of(aux.carried))
        for layer in self.layers(model.layer_count):
            module = model.network.get_submodule(model.architecture.mlp_modules(layer)[-1])
            keys = _keys(model.network, module, model, examples, contexts)
            product = keys @ keys.T
            sums[layer] = sums[layer] + product if layer in sums else product
        return KeyMoments(sums)

    @abstractmethod
    def solve(
        self,
        keys: Float[Tensor, "d_in facts"],
        residuals: Float[Tensor, "d_out facts"],
        protected: Float[Tensor, "d_in d_in"] | None,
        moment: SecondMoment,
    ) -> "Factors":
        """Return the change of one layer that adds `residuals` at `keys`; all in float64.

        `protected` is Σ kkᵀ over the facts of earlier batches, where there are any.
        """
        ...

    def band(self, count: int) -> range:
        """Return the layers that end at `depth`."""
        last = round(self.depth * (count - 1))
        size = max(1, round(self.width * count))
        return range(max(0, last - size + 1), last + 1)


@final
@dataclass(frozen=True)
class Factors:
    """A change `left @ right` of a map, output side first."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]


def factored(change: Factors, *, transposed: bool) -> LowRank:
    """Return the change as it is stored, in float32 and in the orientation of the weights.

    More facts than dimensions give no lower rank, and are multiplied out.
    """
    left, right = change.left, change.right
    if left.shape[1] > left.shape[0]:
        left, right = torch.eye(len(left), dtype=left.dtype, device=left.device), left @ right
    if transposed:
        left, right = right.T, left.T
    return LowRank(left.float().contiguous(), right.float().contiguous())


def _contexts(model: LanguageModel, count: int, seed: int, cache: Cache | None) -> tuple[str, ...]:
    if count == 0:
        return ()
    starts = [_STARTS[number % len(_STARTS)] for number in range(count)]
    return sample_prefixes(
        model, starts, new_tokens=_PREFIX_TOKENS, top_k=_TOP_K, seed=seed, cache=cache
    )


def _located(model: LanguageModel, row: Example, prefix: str = "") -> LocatedPrompt:
    """Return a prompt as it is read before its target."""
    located = locate_subject(model, row.prompt, row.subject, prefix=prefix, target=row.target)
    return located.prompt


def _keys(
    network: PreTrainedModel,
    module: nn.Module,
    model: LanguageModel,
    examples: ExampleSet,
    contexts: Sequence[str],
) -> Float[Tensor, "d_in facts"]:
    """Return each fact's key: half of it from the bare prompt, half from all contexts together."""
    bare = [_located(model, row) for row in examples.rows]
    key, _ = subject_activations(network, module, bare, model.end_id)
    if not contexts:
        return key.T
    inside = [_located(model, row, prefix) for row in examples.rows for prefix in contexts]
    within, _ = subject_activations(network, module, inside, model.end_id)
    mean = within.reshape(len(bare), len(contexts), -1).mean(dim=1)
    return ((key + mean) / 2).T


def _sums_of(carried: Carried | None) -> Mapping[int, Float[Tensor, "d_in d_in"]]:
    return carried.sums if isinstance(carried, KeyMoments) else {}


def _outputs(
    network: PreTrainedModel, model: LanguageModel, examples: ExampleSet, layer: int
) -> Float[Tensor, "facts width"]:
    module = network.get_submodule(model.architecture.layer_module(layer))
    bare = [_located(model, row) for row in examples.rows]
    _, output = subject_activations(network, module, bare, model.end_id)
    return output


def symmetric_solve(
    matrix: Float[Tensor, "n n"], right: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """Return matrix⁻¹ · right for a symmetric positive definite matrix.

    Raises:
        EditError: the matrix is singular, as when two facts share one key and nothing is added.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    # Rounding hides a zero pivot behind one of about the root of the precision.
    if int(failed) or (len(pivots) and float(pivots.min() / pivots.max()) < 1e-7):
        raise EditError(
            "The facts' keys are not independent, so no exact edit exists; remove facts that say "
            "the same, or give the method a regulariser."
        )
    solved: Tensor = torch.cholesky_solve(right, factor)
    return solved
