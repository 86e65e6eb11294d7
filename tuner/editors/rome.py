"""ROME: one fact, one matrix, one rank."""

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, final

from pydantic import Field
from torch import Tensor

from tuner.editing.activations import subject_activations
from tuner.editing.delta import WeightDelta
from tuner.editing.editor import Auxiliary, EpochEdit
from tuner.editing.layers import OneLayerEditor
from tuner.editing.model import LanguageModel
from tuner.editing.postprocess import keep_largest, truncate_rank
from tuner.editing.sampling import sample_prefixes
from tuner.editing.subject import locate_subject
from tuner.editing.task import Example, ExampleSet
from tuner.editors._locate_then_edit.key_covariance import SecondMoment, second_moments
from tuner.editors._locate_then_edit.layer_band_editor import Factors, factored
from tuner.editors._locate_then_edit.target_editor import TargetEditor
from tuner.editors._locate_then_edit.target_vectors import target_vectors
from tuner.errors import EditError
from tuner.files.cache import Cache

# As published: half of the contexts are short and half are long, with the end-of-text token first.
_SHORT, _LONG = 4, 9
_TOP_K = 5


@final
class Rome(OneLayerEditor, TargetEditor):
    """Writes facts one after the other into one MLP output map, each by a rank-one change.

    W + (v* − Wk̄)(C⁻¹k̄)ᵀ / k̄ᵀC⁻¹k̄ says v* at the key k̄ and disturbs usual text least (Meng et al.
    2022, arXiv:2202.05262, eq. 2). By default one k̄, the mean over contexts, is used throughout,
    as Gupta et al. 2024 (arXiv:2403.07175, R-ROME) corrected it.

    `keep_share` prunes the change of each fact before the next is written, as the code of RECT
    (Gu et al. 2024, arXiv:2401.04700) does; `truncated_rank` is about the sum of all.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {
        **TargetEditor.smoke_settings,
        "depth": 0.0,
        "clamp": 1.0,
    }

    depth: float = Field(
        default=0.3, ge=0, le=1, description="The edited layer, as a fraction of all layers."
    )
    clamp: float = Field(
        default=4.0, gt=0, description="Greatest change of a target vector, in its own norms."
    )
    prefixes: int = Field(
        default=20, ge=0, le=64, description="Model-written contexts in which the facts must hold."
    )
    consistent_keys: bool = Field(
        default=True,
        description="Use one key throughout (R-ROME). Without it the published code's mixture of "
        "two keys, which may divide by almost nothing and break the model.",
    )
    decorrelate: bool = Field(
        default=True, description="Use the statistics C of general text; without it, C = I."
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

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the change of the edited matrix, once; its rank is the number of facts.

        `seed` has no part in it: contexts are drawn by `prefix_seed`, so that trials share them.

        Raises:
            EditError: a subject does not stand in its prompt, the statistics need more text, or a
                loss became NaN or infinite.
        """
        origin = aux.origin or model
        layer = self.layer_of(model)
        name = model.architecture.mlp_modules(layer)[-1]
        moment = (
            second_moments(origin, aux.general, [layer], aux.cache)[layer]
            if self.decorrelate
            else None
        )
        contexts = self._contexts(origin, aux.cache)
        settings = self.target_settings(layer, "mlp", contexts)
        total: WeightDelta | None = None
        current = model
        for index, row in enumerate(examples.rows):
            one = examples.model_copy(update={"rows": (row,)})
            # Later facts start from a model that no other trial will ever see again.
            cache = aux.cache if index == 0 else None
            target = target_vectors(current, one, settings, cache)[0]
            change = self._written(current, name, row, contexts, target, moment)
            delta = WeightDelta(
                {f"{name}.weight": factored(change, transposed=model.architecture.transposed)}
            )
            if self.keep_share < 1:
                delta = keep_largest(delta, current.network, self.keep_share)
            total = delta if total is None else total.plus(delta)
            current = model.after(total)
        if total is None:
            raise EditError("There is no example to edit.")
        yield EpochEdit(total)

    def reduced(self, model: LanguageModel, delta: WeightDelta) -> WeightDelta:
        """Return the change cut to `truncated_rank`: each fact's was pruned by itself."""
        if self.truncated_rank is None:
            return delta
        return truncate_rank(delta, model.network, self.truncated_rank)

    def _written(
        self,
        model: LanguageModel,
        name: str,
        row: Example,
        contexts: tuple[str, ...],
        target: Tensor,
        moment: SecondMoment | None,
    ) -> Factors:
        prompts = [
            locate_subject(model, row.prompt, row.subject, prefix=prefix, target=row.target).prompt
            for prefix in ("", *contexts)
        ]
        module = model.network.get_submodule(name)
        keys, outputs = subject_activations(model.network, module, prompts, model.end_id)
        mean = keys.mean(dim=0)
        direction = mean if moment is None else moment.solve(mean[:, None])[:, 0]
        key, output = (mean, outputs.mean(dim=0)) if self.consistent_keys else (keys[0], outputs[0])
        return rank_one(key, direction, target - output)

    def _contexts(self, model: LanguageModel, cache: Cache | None) -> tuple[str, ...]:
        if self.prefixes == 0:
            return ()
        short = self.prefixes // 2
        lengths = [_SHORT] * short + [_LONG] * (self.prefixes - short)
        return sample_prefixes(
            model,
            [""] * self.prefixes,
            new_tokens=lengths,
            top_k=_TOP_K,
            seed=self.prefix_seed,
            cache=cache,
        )


def rank_one(key: Tensor, direction: Tensor, residual: Tensor) -> Factors:
    """Return the change that adds `residual` at `key` along `direction`.

    Raises:
        EditError: the direction is blind to the key, so that the change would be infinite.
    """
    gain = float(direction @ key)
    if not abs(gain) > 1e-12 * float(direction.norm() * key.norm()):
        raise EditError(
            "The key has no share in its own direction of change, so no finite edit exists; use "
            "consistent_keys."
        )
    return Factors(left=residual[:, None], right=direction[None, :] / gain)
