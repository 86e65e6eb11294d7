"""A study that never ran: drawn from a seed, shaped like real ones. For tests of what shows it."""

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuner.editing.constraint import Constraint
from tuner.evaluation.deviation.budget import Certificate, Deviation, epsilon_name
from tuner.evaluation.scores import Interval, Scores
from tuner.trial.records import (
    Answer,
    EpochRecord,
    Outcome,
    Phase,
    Rule,
    SeedResult,
    SplitName,
    StudyResultRecord,
    StudySummary,
    TrialEntry,
    TrialRecord,
    TrialState,
    Winner,
)

EPSILONS = (1e-3, 1e-4, 1e-5)
BASE_SUCCESS = 0.14
START = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
VERSIONS = {"tuner": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "optuna": "5.0.0"}


def made_up_study(
    folder: Path, *, trials: int = 30, seed: int = 0, name: str = "capitals", finished: bool = True
) -> StudyResultRecord:
    """Return a study with completed and failed trials, and, if finished, with winners."""
    draw = random.Random(seed)
    summary = StudySummary(
        name=name,
        uid=f"{name}-{seed:08x}",
        model="builtin:neox",
        model_fingerprint="9c1f2d7a41e0b35c",
        task="country_capital",
        task_hash="5b0d9e2f77aa1c04",
        space="lora-or-full",
        sampler="gp",
        rule=Rule.FITTED,
        target_epsilon=1e-4,
        epsilons=EPSILONS,
        seed=seed,
        trials=trials,
        versions=VERSIONS,
        folder=folder / name,
    )
    entries = []
    clock = START
    for number in range(trials):
        entry = made_up_entry(draw, number, clock)
        entries.append(entry)
        clock += timedelta(seconds=draw.uniform(2, 6))
    if not finished:
        return StudyResultRecord(summary=summary, entries=tuple(entries))
    winners = tuple(
        winner
        for epsilon in EPSILONS
        if (winner := _winner(draw, entries, epsilon, summary)) is not None
    )
    kept = {winner.trial: winner for winner in winners}
    for number in kept:
        won = [winner.epsilon for winner in winners if winner.trial == number]
        bundles = tuple((epsilon, _bundle(summary.folder, number, epsilon)) for epsilon in won)
        entries[number] = entries[number].model_copy(update={"bundles": bundles})
    return StudyResultRecord(summary=summary, winners=winners, entries=tuple(entries))


def about_facts(result: StudyResultRecord) -> StudyResultRecord:
    """Return a study with the published figures of fact editing in all its scores."""

    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [told(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "row_success" in value:
            success = value["success"]
            figures = {"efficacy": 0.9, "specificity": 0.75, "edit_score": 0.8125, "fluency": 612.5}
            return value | figures | {"generalisation": success}
        return {key: told(item) for key, item in value.items()}

    return StudyResultRecord.model_validate(told(result.model_dump(mode="json")))


def made_up_entry(draw: random.Random, number: int, started: datetime) -> TrialEntry:
    editor = draw.choice(["lora", "lora", "full_finetuning"])
    parameters = {
        "editor": editor,
        "learning_rate": 10 ** draw.uniform(-4, -1.3),
        "kl_weight": 10 ** draw.uniform(-2, 1),
        "depth": round(draw.uniform(0.1, 0.9), 3),
    }
    if editor == "lora":
        parameters["rank"] = draw.choice([1, 2, 4, 8, 16])
    hyperparameters = {k: v for k, v in parameters.items() if k != "editor"}
    hyperparameters |= {"epochs": 8, "betas": [0.9, 0.95]}
    seconds = draw.uniform(4, 14)
    if number % 13 == 7:
        why = "loss is not finite at epoch 3 <learning_rate=0.048 is too high?>"
        record = TrialRecord.failed(
            editor=editor,
            hyperparameters=hyperparameters,
            split=SplitName.VAL,
            seed=number,
            why=why,
        )
        state = TrialState.FAILED
    else:
        record = _record(draw, number, editor, hyperparameters, seconds)
        why, state = None, TrialState.COMPLETED
    return TrialEntry(
        number=number,
        state=state,
        parameters=parameters,
        record=record,
        started=started,
        finished=started + timedelta(seconds=seconds),
        failure=why,
    )


def _record(draw, number, editor, hyperparameters, seconds) -> TrialRecord:
    strength = math.log10(hyperparameters["learning_rate"]) + 4
    rank = hyperparameters.get("rank", 6)
    reach = max(0.05, 0.8 - 0.35 * (strength - 1.6) ** 2 + 0.02 * math.log2(rank))
    reach *= 1 - 0.4 * abs(hyperparameters["depth"] - 0.55)
    scale = 10 ** (-6.2 + 1.5 * strength - 0.4 * math.log10(hyperparameters["kl_weight"] + 0.01))
    epochs = []
    for epoch in range(1, 9):
        success = min(0.97, BASE_SUCCESS + reach * (1 - math.exp(-epoch / 2.5)))
        drift = scale * epoch**1.4 * draw.uniform(0.8, 1.2) - 3e-7 * draw.random()
        loss = 3.1 * math.exp(-epoch * strength / 6) + 0.05
        epochs.append(
            EpochRecord(
                epoch=epoch,
                training_loss=loss,
                success=round(success * 240) / 240,
                deviation=_deviation(drift, 20_000),
            )
        )
    return TrialRecord(
        outcome=Outcome.COMPLETED,
        editor=editor,
        hyperparameters=hyperparameters,
        split=SplitName.VAL,
        seed=number,
        base=_scores(BASE_SUCCESS),
        epochs=tuple(epochs),
        answers=tuple(_answer(epochs, e, rule) for e in EPSILONS for rule in Rule),
        stopped_early=number % 5 == 0,
        seconds={
            Phase.LOAD: 0.02,
            Phase.EDIT: 0.2 * seconds,
            Phase.SUCCESS: 0.3 * seconds,
            Phase.DEVIATION: 0.48 * seconds,
        },
        versions=VERSIONS,
    )


def _answer(epochs: list[EpochRecord], epsilon: float, rule: Rule) -> Answer:
    within = [e for e in epochs if e.deviation.estimate <= epsilon]
    if rule is Rule.FITTED:
        found = [(e, min(1.0, (epsilon / max(e.deviation.estimate, 1e-9)) ** 0.5)) for e in epochs]
        chosen, alpha = max(found, key=lambda pair: (pair[0].success - BASE_SUCCESS) * pair[1])
        alpha *= 0.98 if alpha < 1 else 1
    elif within:
        chosen = within[-1] if rule is Rule.PUBLISHED else max(within, key=lambda e: e.success)
        alpha = 1.0
    else:
        chosen, alpha = None, 0.0
    if chosen is None or alpha < 0.02:
        deviation = Deviation.none(0.95)
        return _made_answer(rule, epsilon, None, 0.0, BASE_SUCCESS, deviation)
    success = BASE_SUCCESS + (chosen.success - BASE_SUCCESS) * alpha
    drift = chosen.deviation.estimate * alpha**2
    return _made_answer(rule, epsilon, chosen.epoch, alpha, success, _deviation(drift, 60_000))


def _made_answer(rule, epsilon, epoch, alpha, success, deviation) -> Answer:
    gain = success - BASE_SUCCESS
    return Answer(
        rule=rule,
        epsilon=epsilon,
        epoch=epoch,
        alpha=alpha,
        scores=_scores(success),
        gain=gain,
        gain_interval=Interval(low=gain - 0.06, high=gain + 0.06, confidence=0.95),
        deviation=deviation,
        verdict=deviation.verdict(epsilon),
    )


def _scores(success: float) -> Scores:
    return Scores(success=success, exact=0.9 * success, hard_negative_loss=2.1, related_loss=1.7)


def _deviation(estimate: float, tokens: int) -> Deviation:
    error = max(2e-8, abs(estimate) * 0.03)
    return Deviation(
        estimate=estimate,
        standard_error=error,
        lower=estimate - 1.2 * error,
        upper=estimate + 0.6 * error,
        tokens=tokens,
        confidence=0.95,
    )


def _winner(
    draw: random.Random, entries: list[TrialEntry], epsilon: float, summary: StudySummary
) -> Winner | None:
    records = [(e.number, e.record) for e in entries if e.state is TrialState.COMPLETED]
    answers = [(number, record, record.answer(epsilon, Rule.FITTED)) for number, record in records]
    answers = [found for found in answers if found[2].epoch is not None]
    if not answers:
        return None
    number, record, answer = max(answers, key=lambda found: found[2].gain)
    certificate = _certificate(answer.deviation.estimate, epsilon)
    test = []
    for seed in range(3):
        gain = max(0.0, answer.gain - 0.05 + 0.03 * draw.uniform(-1, 1))
        drift = answer.deviation.estimate * draw.uniform(0.6, 1.25)
        test.append(
            SeedResult(
                seed=100 + seed,
                answer=_made_answer(
                    Rule.FITTED,
                    epsilon,
                    answer.epoch,
                    answer.alpha,
                    BASE_SUCCESS + gain,
                    _deviation(drift, 60_000),
                ),
                certificate=_certificate(drift, epsilon),
            )
        )
    mean = sum(result.answer.gain for result in test) / len(test)
    return Winner(
        epsilon=epsilon,
        rule=Rule.FITTED,
        trial=number,
        editor=record.editor,
        hyperparameters=record.hyperparameters,
        validation=answer,
        certificate=certificate,
        test=tuple(test),
        test_gain=mean,
        test_gain_interval=Interval(low=mean - 0.07, high=mean + 0.07, confidence=0.95),
        seeds_within_budget=sum(result.certificate.holds for result in test),
    )


def _certificate(estimate: float, epsilon: float) -> Certificate:
    deviation = _deviation(estimate, 400_000)
    return Certificate(
        epsilon=epsilon,
        verdict=deviation.verdict(epsilon),
        deviation=deviation,
        corpus="built-in general text, confirmation part",
        corpus_hash="77ab0912ce5d3f10",
    )


def _bundle(folder: Path, number: int, epsilon: float) -> Path:
    bundle = folder / "trials" / str(number) / epsilon_name(epsilon)
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "delta.json").write_text('{"schema": 1}')
    (bundle / "delta.safetensors").write_bytes(bytes(64))
    return bundle


def under_constraint(result: StudyResultRecord, broken: set[int]) -> StudyResultRecord:
    """Return the study as if its task limited the hard negatives, which `broken` trials break."""
    limit = Constraint(metric="hard_negative_loss", rise=0.05)

    def judged(entry: TrialEntry) -> TrialEntry:
        violations = {limit.name: 0.4 if entry.number in broken else -0.6}
        record = entry.record
        if record is None:
            return entry
        parts = {
            "answers": tuple(
                answer.model_copy(update={"violations": violations}) for answer in record.answers
            ),
            "epochs": tuple(
                epoch.model_copy(update={"violations": violations}) for epoch in record.epochs
            ),
        }
        return entry.model_copy(update={"record": record.model_copy(update=parts)})

    def tested(seed: SeedResult, violation: float) -> SeedResult:
        answer = seed.answer.model_copy(update={"violations": {limit.name: violation}})
        return seed.model_copy(update={"answer": answer})

    winners = tuple(
        winner.model_copy(
            update={
                "test": tuple(
                    tested(seed, 0.25 if index == 0 else -0.5)
                    for index, seed in enumerate(winner.test)
                ),
                "seeds_within_constraints": len(winner.test) - 1,
            }
        )
        for winner in result.winners
    )
    return StudyResultRecord(
        summary=result.summary.model_copy(update={"constraints": (limit,)}),
        winners=winners,
        entries=tuple(judged(entry) for entry in result.entries),
    )
