"""What a model does on a task, as numbers."""

from collections.abc import Iterable
from typing import final

from pydantic import BaseModel, ConfigDict, Field


@final
class Interval(BaseModel):
    """A confidence interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    confidence: float


# What a fact editor and a memory are told by, in the order of the published tables.
HEADLINE_METRICS = (
    "efficacy",
    "generalisation",
    "specificity",
    "edit_score",
    "drawdown",
    "scope_precision",
    "scope_recall",
    "scope_entry_recall",
    "scope_auc",
)


@final
class Scores(BaseModel):
    """What a model does on the rows of one split of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: float = Field(description="Share of OOD rows that succeed by the task's rule.")
    exact: float | None = Field(
        default=None, description="Share of OOD rows whose greedy generation equals the target."
    )
    hard_negative_loss: float | None = Field(
        default=None, description="Mean summed loss of the hard negatives' targets, in nats."
    )
    related_loss: float | None = Field(
        default=None, description="Mean loss per token of the related text, in nats."
    )
    efficacy: float | None = Field(
        default=None,
        description="Share of canonical rows that succeed; for all rules but threshold.",
    )
    efficacy_exact: float | None = Field(
        default=None,
        description="Share of canonical rows whose greedy generation equals the target.",
    )
    generalisation: float | None = Field(
        default=None, description="Success, under the name that efficacy and specificity go with."
    )
    specificity: float | None = Field(
        default=None,
        description="Share of neighbours whose true object stays likelier than the new one, or "
        "the token accuracy of the true one (rule tokens); else success by the task's rule.",
    )
    edit_score: float | None = Field(
        default=None,
        description="Harmonic mean of efficacy, generalisation and specificity.",
    )
    locality_gold: float | None = Field(
        default=None,
        description="Share of the neighbours' target tokens that are predicted, the true ones "
        "before them given; equals specificity (rule tokens).",
    )
    locality_base: float | None = Field(
        default=None,
        description="Share of the same places where the prediction is the base model's, right or "
        "wrong (rule tokens).",
    )
    fluency: float | None = Field(
        default=None,
        description="100 times the weighted mean of the 2- and 3-gram entropies, in bits, of what "
        "the model says after the generation prompts.",
    )
    consistency: float | None = Field(
        default=None,
        description="100 times the TF-IDF cosine of what it says there with the references.",
    )
    drawdown: float | None = Field(
        default=None,
        description="Share of hard negatives on which the model says something else than the "
        "base model: by its likeliest tokens (rule sequence) or by which of target and contrast "
        "is likelier (rule likelier); KL(base||edited) per token, in nats (rule sentiment).",
    )
    scope_precision: float | None = Field(
        default=None,
        description="Share of the prompts that a memory takes for its edits' that are; none where "
        "it takes no prompt.",
    )
    scope_recall: float | None = Field(
        default=None, description="Share of the edits' prompts that a memory takes for such."
    )
    scope_entry_recall: float | None = Field(
        default=None,
        description="Share of the edits' prompts that it takes for those of the right edit; where "
        "its entries are edits.",
    )
    scope_auc: float | None = Field(
        default=None,
        description="How often an edit's prompt is nearer to the memory than one that is out of "
        "all scopes, ties as a half; it does not depend on where scopes end.",
    )
    further: dict[str, float] = Field(
        default={},
        exclude_if=lambda further: not further,
        description="Metrics that are not tuner's own, by name.",
    )
    row_success: tuple[float, ...] = Field(
        default=(), repr=False, description="Success of each OOD row, from 0 to 1."
    )

    def figures(self) -> dict[str, float]:
        """Return all that was measured, by name, without the single rows."""
        ours: dict[str, float] = self.model_dump(
            exclude={"row_success", "further"}, exclude_none=True
        )
        return ours | self.further

    def reported(self, names: Iterable[str]) -> dict[str, float]:
        """Return those of `names` that were measured and are not told of anyway."""
        figures = self.figures()
        return {
            name: figures[name]
            for name in names
            if name in figures and name not in (*HEADLINE_METRICS, "exact")
        }

    def fact_figures(self) -> dict[str, float]:
        """Return those of `HEADLINE_METRICS` that were measured; none for other tasks."""
        figures = self.figures()
        return {name: figures[name] for name in HEADLINE_METRICS if name in figures}
