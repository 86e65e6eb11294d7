"""Trial records that never ran."""

from tuner.evaluation.deviation.budget import Deviation
from tuner.evaluation.scores import Scores
from tuner.trial.records import Answer, EpochRecord, Outcome, Rule, SplitName, TrialRecord

BASE = 0.2


def deviation(estimate: float) -> Deviation:
    error = abs(estimate) / 10 + 1e-9
    return Deviation(
        estimate=estimate,
        standard_error=error,
        lower=estimate - 3 * error,
        upper=estimate + 3 * error,
        tokens=1000,
        confidence=0.95,
    )


def scores(success: float, rows: int = 20) -> Scores:
    passed = round(success * rows)
    return Scores(success=success, row_success=tuple(index < passed for index in range(rows)))


def answer(
    success: float,
    at: float,
    *,
    epsilon: float = 1e-3,
    rule: Rule = Rule.FITTED,
    epoch: int | None = 1,
    violations: dict[str, float] | None = None,
) -> Answer:
    found = deviation(at) if epoch is not None else Deviation.none(0.95)
    return Answer(
        violations=violations or {},
        rule=rule,
        epsilon=epsilon,
        epoch=epoch,
        alpha=1.0 if epoch is not None else 0.0,
        scores=scores(success),
        gain=success - BASE,
        deviation=found,
        verdict=found.verdict(epsilon),
    )


def record(
    *answers: Answer,
    epochs: tuple[tuple[float, float], ...] = (),
    violations: dict[str, float] | None = None,
) -> TrialRecord:
    """A completed trial; `epochs` are pairs of success and deviation, `violations` theirs."""
    return TrialRecord(
        outcome=Outcome.COMPLETED,
        editor="lora",
        hyperparameters={"rank": 1},
        split=SplitName.VAL,
        seed=0,
        base=scores(BASE),
        epochs=tuple(
            EpochRecord(
                violations=violations or {},
                epoch=number,
                training_loss=1.0,
                success=success,
                deviation=deviation(at),
            )
            for number, (success, at) in enumerate(epochs, start=1)
        ),
        answers=answers,
    )


def failed(why: str = "The loss is NaN.") -> TrialRecord:
    return TrialRecord.failed(
        editor="lora", hyperparameters={"rank": 1}, split=SplitName.VAL, seed=0, why=why
    )
