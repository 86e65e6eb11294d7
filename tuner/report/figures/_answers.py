"""The answers of a study's trials, and what a figure says of one under the pointer."""

from tuner.report.figures._style import plain
from tuner.report.words import deviation, editor_of, epsilon_words, gain, limits, settings, share
from tuner.trial.records import Answer, StudyResultRecord, StudySummary, TrialEntry, TrialRecord


def answer_for(record: TrialRecord | None, epsilon: float, summary: StudySummary) -> Answer | None:
    """Return the answer of the study's rule for a budget, if the trial has one."""
    if record is None:
        return None
    try:
        return record.answer(epsilon, summary.rule)
    except KeyError:
        return None


def answer_text(entry: TrialEntry, answer: Answer) -> str:
    """Return what is said of an answer under the pointer."""
    where = f"epoch {answer.epoch}, α = {answer.alpha:.2f}" if answer.epoch else "the base model"
    return (
        f"trial {entry.number} at ε = {epsilon_words(answer.epsilon)}<br>{where}<br>"
        f"success {share(answer.success)}, gain {gain(answer.gain)}<br>"
        f"deviation {deviation(answer.deviation.estimate)}<br>"
        f"{_broken_text(answer)}{settings_text(entry)}"
    )


def _broken_text(answer: Answer) -> str:
    return "" if answer.keeps_constraints else f"breaks {limits(answer.violations)}<br>"


def settings_text(entry: TrialEntry) -> str:
    """Return the editor and its first hyperparameters, one a line."""
    lines = [f"{name} {value}" for name, value in settings(entry.parameters)]
    return plain("<br>".join([editor_of(entry), *lines][:9]))


def editors_of(result: StudyResultRecord) -> list[str]:
    """Return the editors that were tried, in the order of their names."""
    return sorted({editor_of(entry) for entry in result.entries})
