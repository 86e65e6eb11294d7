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


@final
class Scores(BaseModel):
    """What a model does on the rows of one split of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: float = Field(description="Share of OOD rows whose loss meets the threshold.")
    exact: float | None = Field(
        default=None, description="Share of OOD rows whose greedy generation equals the target."
    )
    hard_negative_loss: float | None = Field(
        default=None, description="Mean summed loss of the hard negatives' targets, in nats."
    )
    related_loss: float | None = Field(
        default=None, description="Mean loss per token of the related text, in nats."
    )
    row_success: tuple[bool, ...] = Field(default=(), repr=False)
