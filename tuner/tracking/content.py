"""What MLflow shows of a study: names, values, states. No call to MLflow is made here.

One parent run holds the study, one nested run each trial:

    params      editor, learning_rate, rank, ...          the hyperparameters
    metrics     success, deviation, deviation_log10, ...  step = epoch, of the unscaled edit
                fitted.eps_1e-04/success, .../gain, ...   the answer for a budget under a rule
                seconds/edit, seconds/total
    tags        task, model, outcome, seed, rank.eps_1e-04, feasible.eps_1e-04, version.torch
    artifacts   bundles/eps_1e-04/                        on the runs of the winners

The part of a metric before the slash is the section under which MLflow draws its chart.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from tuner.evaluation.deviation.budget import epsilon_label
from tuner.trial.records import (
    Answer,
    Rule,
    StudySummary,
    TrialEntry,
    TrialRecord,
    TrialState,
    Winner,
)

STUDY_TAG = "tuner.study"
UID_TAG = "tuner.uid"

# Raise it when the meaning of a name changes: runs already shown are then written again.
_LAYOUT = 1
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True)
class RunContent:
    """All that one MLflow run shows."""

    uid: str
    name: str
    status: str
    started_ms: int | None
    ended_ms: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: tuple[Point, ...]
    artifacts: tuple[tuple[Path, str], ...] = ()

    @property
    def digest(self) -> str:
        """A short text that differs whenever the run would show something else."""
        shown = json.dumps(
            [
                _LAYOUT,
                self.name,
                self.status,
                self.ended_ms,
                sorted(self.tags.items()),
                sorted(self.params.items()),
                [(point.key, repr(point.value), point.step) for point in self.points],
                [(str(path), _stamp(path), where) for path, where in self.artifacts],
            ]
        )
        return sha256(shown.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class StudyView:
    """A study at one moment, as far as it is to be shown."""

    summary: StudySummary
    entries: Mapping[int, TrialEntry]
    winners: tuple[Winner, ...] = ()
    report: Path | None = None
    figures: tuple[Path, ...] = ()
    live: bool = True
    finished: bool = False

    def ranks(self) -> dict[float, dict[int, int]]:
        """Return per budget the rank of every trial whose edit keeps it; 1 is the best."""
        return {epsilon: self._ranks_at(epsilon) for epsilon in self.summary.epsilons}

    def _ranks_at(self, epsilon: float) -> dict[int, int]:
        feasible = [
            (-answer.success, answer.deviation.estimate, number)
            for number, entry in self.entries.items()
            if (answer := answer_of(entry.record, epsilon, self.summary.rule)) is not None
            and answer.feasible
        ]
        return {number: rank for rank, (_, _, number) in enumerate(sorted(feasible), start=1)}


def answer_of(record: TrialRecord | None, epsilon: float, rule: Rule) -> Answer | None:
    """Return a record's answer, or None where the trial gave none."""
    if record is None:
        return None
    try:
        return record.answer(epsilon, rule)
    except KeyError:
        return None


def metric_name(quantity: str, rule: Rule, epsilon: float) -> str:
    """Return the name of an answer's metric: `fitted.eps_1e-04/success`."""
    return f"{rule}.{epsilon_label(epsilon)}/{quantity}"


def study_uid(summary: StudySummary) -> str:
    """Return the tag by which the parent run is found again."""
    return f"{summary.uid}/study"


def trial_uid(summary: StudySummary, number: int) -> str:
    """Return the tag by which a trial's run is found again."""
    return f"{summary.uid}/{number}"


def trial_content(view: StudyView, number: int, ranks: dict[float, dict[int, int]]) -> RunContent:
    """Return what the nested run of one trial shows."""
    entry, summary = view.entries[number], view.summary
    record = entry.record
    editor = record.editor if record else str(entry.parameters.get("editor", ""))
    hyperparameters = record.hyperparameters if record else entry.parameters
    at_ms = _ms(entry.finished) or _ms(entry.started) or 0
    won = [winner for winner in view.winners if winner.trial == number]
    return RunContent(
        uid=trial_uid(summary, number),
        name=f"{number:04d} {editor}".strip(),
        status=_status(entry.state, view.live),
        started_ms=_ms(entry.started),
        ended_ms=_ms(entry.finished),
        tags=_clipped(_trial_tags(view, entry, editor, ranks, won)),
        params={
            legal_name(name): _param(value)
            for name, value in {"editor": editor, **hyperparameters}.items()
        },
        points=tuple(
            Point(key, value, step, at_ms)
            for key, value, step in (
                *_record_values(record, summary.metrics),
                *_winner_values(won, shared=False),
                *_total_seconds(entry),
            )
            if math.isfinite(value)
        ),
        artifacts=tuple(
            (folder, f"bundles/{epsilon_label(epsilon)}")
            for epsilon, folder in entry.bundles
            if any(winner.epsilon == epsilon for winner in won)
        ),
    )


def study_content(view: StudyView) -> RunContent:
    """Return what the parent run of a study shows."""
    summary = view.summary
    started = min((e.started for e in view.entries.values() if e.started), default=None)
    ended = max((e.finished for e in view.entries.values() if e.finished), default=None)
    points = [Point(k, v, s, at) for k, v, s, at in _best_so_far(view) if math.isfinite(v)]
    points += [
        Point(key, value, step, _ms(ended) or 0)
        for key, value, step in _winner_values(list(view.winners), shared=True)
        if math.isfinite(value)
    ]
    report = ((view.report, "report"),) if view.report else ()
    over = view.finished or not view.live
    return RunContent(
        uid=study_uid(summary),
        name=summary.name,
        status=_study_status(view),
        started_ms=_ms(started),
        ended_ms=_ms(ended) if over else None,
        tags=_clipped(
            {
                STUDY_TAG: summary.uid,
                UID_TAG: study_uid(summary),
                "tuner.kind": "study",
                "mlflow.source.name": f"tuner search {summary.name}",
                "mlflow.note.content": _note(view),
                "model": summary.model,
                "task": summary.task,
                **{f"version.{name}": text for name, text in sorted(summary.versions.items())},
            }
        ),
        params={
            name: _param(value)
            for name, value in {
                "model": summary.model,
                "model_fingerprint": summary.model_fingerprint,
                "task": summary.task,
                "task_hash": summary.task_hash,
                "space": summary.space,
                "sampler": summary.sampler,
                "rule": str(summary.rule),
                "target_epsilon": summary.target_epsilon,
                "epsilons": list(summary.epsilons),
                "study_seed": summary.seed,
                **_if_any(summary),
            }.items()
        },
        points=tuple(points),
        artifacts=report + tuple((figure, "figures") for figure in view.figures),
    )


def _if_any(summary: StudySummary) -> dict[str, str]:
    """Return what only some studies have been asked for."""
    words = "; ".join(constraint.words for constraint in summary.constraints)
    return {
        **({"scheduler": summary.scheduler} if summary.scheduler != "none" else {}),
        **({"metrics": ", ".join(summary.metrics)} if summary.metrics else {}),
        **({"constraints": words} if words else {}),
    }


def legal_name(name: str) -> str:
    """Return a name with every character that MLflow refuses replaced by an underscore."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _trial_tags(
    view: StudyView,
    entry: TrialEntry,
    editor: str,
    ranks: dict[float, dict[int, int]],
    won: list[Winner],
) -> dict[str, str]:
    summary, record = view.summary, entry.record
    tags = {
        STUDY_TAG: summary.uid,
        UID_TAG: trial_uid(summary, entry.number),
        "tuner.kind": "trial",
        "mlflow.source.name": f"tuner search {summary.name}",
        "trial": f"{entry.number:04d}",
        "editor": editor,
        "task": summary.task,
        "model": summary.model,
        "outcome": str(entry.state),
    }
    failure = entry.failure or (record.failure if record else None)
    if failure:
        tags["failure"] = failure
    if record:
        tags |= {"seed": str(record.seed), "split": str(record.split)}
        tags |= {f"version.{name}": text for name, text in sorted(record.versions.items())}
    for epsilon in summary.epsilons:
        label = epsilon_label(epsilon)
        answer = answer_of(record, epsilon, summary.rule)
        if answer is not None:
            tags[f"feasible.{label}"] = "yes" if answer.feasible else "no"
        # Ranks move with every trial; while the search runs they would be stale at once.
        if view.finished and entry.number in ranks.get(epsilon, {}):
            tags[f"rank.{label}"] = f"{ranks[epsilon][entry.number]:03d}"
    if won:
        tags["winner"] = ", ".join(epsilon_label(winner.epsilon) for winner in won)
    return tags


def _record_values(
    record: TrialRecord | None, metrics: Sequence[str]
) -> Iterator[tuple[str, float, int]]:
    if record is None:
        return
    if record.base is not None:
        yield "base_success", record.base.success, 0
        base = record.base.fact_figures() | record.base.reported(metrics)
        for name, value in base.items():
            yield f"base_{name}", value, 0
    for epoch in record.epochs:
        yield "success", epoch.success, epoch.epoch
        yield "deviation", epoch.deviation.estimate, epoch.epoch
        if epoch.deviation.divergence is not None:
            yield "divergence", epoch.deviation.divergence.estimate, epoch.epoch
        if epoch.deviation.estimate > 0:
            # MLflow's scatter has no logarithmic axis, and the frontier spans decades.
            yield "deviation_log10", math.log10(epoch.deviation.estimate), epoch.epoch
        if epoch.training_loss is not None:
            yield "training_loss", epoch.training_loss, epoch.epoch
        for name, violation in epoch.violations.items():
            yield f"violation.{name}", violation, epoch.epoch
    for answer in record.answers:
        for quantity, value in _answer_values(answer):
            yield metric_name(quantity, answer.rule, answer.epsilon), value, 0
    for phase, seconds in record.seconds.items():
        yield f"seconds/{phase}", seconds, 0


def _answer_values(answer: Answer) -> Iterator[tuple[str, float]]:
    yield from answer.scores.figures().items()
    yield "gain", answer.gain
    yield "deviation", answer.deviation.estimate
    yield "deviation_upper", answer.deviation.upper
    if answer.deviation.divergence is not None:
        yield "divergence", answer.deviation.divergence.estimate
        yield "divergence_upper", answer.deviation.divergence.upper
    yield "alpha", answer.alpha
    if answer.epoch is not None:
        yield "epoch", float(answer.epoch)
    for name, violation in answer.violations.items():
        yield f"violation.{name}", violation


def _winner_values(won: list[Winner], *, shared: bool) -> Iterator[tuple[str, float, int]]:
    for winner in won:
        section = f"winner.{epsilon_label(winner.epsilon)}"
        yield f"{section}/certified_deviation", winner.certificate.deviation.estimate, 0
        yield f"{section}/certified_upper", winner.certificate.deviation.upper, 0
        divergence = winner.certificate.deviation.divergence
        if divergence is not None:
            yield f"{section}/certified_divergence", divergence.estimate, 0
        if winner.test_gain is not None:
            yield f"{section}/test_gain", winner.test_gain, 0
        if winner.seeds_within_budget is not None:
            yield f"{section}/seeds_within_budget", float(winner.seeds_within_budget), 0
        if winner.seeds_within_constraints is not None:
            yield f"{section}/seeds_within_constraints", float(winner.seeds_within_constraints), 0
        if shared:
            yield f"{section}/trial", float(winner.trial), 0
            yield f"{section}/validation_gain", winner.validation.gain, 0


def _best_so_far(view: StudyView) -> Iterator[tuple[str, float, int, int]]:
    """Yield the incumbents after each finished trial, in the order in which trials finished."""
    done = [e for e in view.entries.values() if e.record and e.finished]
    done.sort(key=lambda entry: (_ms(entry.finished) or 0, entry.number))
    best: dict[float, float] = {}
    for step, entry in enumerate(done, start=1):
        for epsilon in view.summary.epsilons:
            answer = answer_of(entry.record, epsilon, view.summary.rule)
            if answer is None:
                continue
            gain = answer.gain if answer.keeps_constraints else 0.0
            best[epsilon] = max(best.get(epsilon, 0.0), gain)
            key = f"best_so_far/gain.{epsilon_label(epsilon)}"
            yield key, best[epsilon], step, _ms(entry.finished) or 0


def _total_seconds(entry: TrialEntry) -> Iterator[tuple[str, float, int]]:
    if entry.started and entry.finished:
        yield "seconds/total", (entry.finished - entry.started).total_seconds(), 0


def _note(view: StudyView) -> str:
    summary = view.summary
    target = metric_name("success", summary.rule, summary.target_epsilon)
    lines = [
        f"**{summary.name}**: {summary.trials} trials of `{summary.space}` on `{summary.task}`, "
        f"model `{summary.model}`, sampler {summary.sampler}, seed {summary.seed}.",
        "",
        f"Objective: `{target}`. Frontier: compare the trials and set the scatter plot to "
        f"`{metric_name('deviation', summary.rule, summary.target_epsilon)}` against `{target}`, "
        "or open the artifact `figures/frontier.html`. The answer in words: `report/`.",
    ]
    return "\n".join(lines)


def _status(state: TrialState, live: bool) -> str:
    if state.has_answers:
        return "FINISHED"
    if state is TrialState.FAILED:
        return "FAILED"
    # No worker runs an unfinished trial once its driver has gone.
    if not live:
        return "KILLED"
    return "RUNNING" if state is TrialState.RUNNING else "SCHEDULED"


def _study_status(view: StudyView) -> str:
    if view.finished:
        return "FINISHED"
    if view.live:
        return "RUNNING"
    all_failed = all(entry.state is TrialState.FAILED for entry in view.entries.values())
    return "FAILED" if view.entries and all_failed else "KILLED"


def _param(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_LONGEST_PARAM]


def _clipped(tags: dict[str, str]) -> dict[str, str]:
    return {legal_name(name): text[:_LONGEST_TAG] for name, text in tags.items()}


def _ms(moment: datetime | None) -> int | None:
    return round(moment.timestamp() * 1000) if moment else None


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Return what tells that an artifact changed, without reading it."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
