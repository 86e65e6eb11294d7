"""A bundle around a delta, with made-up results, as a search would write it."""

from collections.abc import Mapping

from tuner.bundle.bundle import Bundle
from tuner.bundle.manifest import Manifest, dtype_name, state_fields
from tuner.deltas.registry import kind_of
from tuner.editing.delta import Delta
from tuner.editing.model import LanguageModel
from tuner.evaluation.deviation.budget import Deviation, Verdict
from tuner.evaluation.scores import Scores
from tuner.trial.records import Answer, Rule, SplitName


def bundle_of(
    model: LanguageModel,
    delta: Delta,
    *,
    editor: str = "lora",
    hyperparameters: Mapping[str, object] | None = None,
) -> Bundle:
    """Return a delta of a model with a manifest around it."""
    answer = Answer(
        rule=Rule.FITTED,
        epsilon=1e-3,
        epoch=2,
        alpha=1.0,
        scores=Scores(success=0.5),
        gain=0.25,
        deviation=Deviation.none(0.95),
        verdict=Verdict.WITHIN,
    )
    manifest = Manifest(
        kind=kind_of(delta),
        **state_fields(delta.state),
        base=model.id,
        base_revision=None,
        base_fingerprint=model.fingerprint,
        base_dtype=dtype_name(model),
        model_type=str(model.network.config.model_type),
        task="capitals",
        task_hash="0",
        editor=editor,
        hyperparameters=dict(hyperparameters or {"learning_rate": 0.1}),
        seed=0,
        split=SplitName.VAL,
        epsilon=1e-3,
        rule=Rule.FITTED,
        answers=(answer,),
        versions={"tuner": "0"},
    )
    return Bundle(delta, manifest)
