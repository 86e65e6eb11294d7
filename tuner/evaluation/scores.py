"""What a model does on a task, as numbers."""

from typing import final

from pydantic import BaseModel, ConfigDict, Field


@final
class Interval(BaseModel):
    """A confidence interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    confidence: float


# What a fact editor is told by, in the order of the published tables.
FACT_FIGURES = ("efficacy", "generalisation", "specificity", "edit_score")


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
        description="Share of canonical rows that succeed; for the rules likelier and tokens.",
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
        "the token accuracy of the true one (rule tokens).",
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
    row_success: tuple[float, ...] = Field(
        default=(), repr=False, description="Success of each OOD row, from 0 to 1."
    )

    def figures(self) -> dict[str, float]:
        """Return all that was measured, by name, without the single rows."""
        return self.model_dump(exclude={"row_success"}, exclude_none=True)

    def fact_figures(self) -> dict[str, float]:
        """Return those of `FACT_FIGURES` that were measured; none for other tasks."""
        figures = self.figures()
        return {name: figures[name] for name in FACT_FIGURES if name in figures}
