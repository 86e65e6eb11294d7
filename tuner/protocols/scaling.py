"""Editors at several numbers of simultaneous edits: does one still work where many are made?"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.companions import Companions
from tuner.editing.corpus import GeneralText, TextPart
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel
from tuner.editing.task import Task
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Budget, Verdict
from tuner.evaluation.scores import Interval
from tuner.evaluation.statistics.confidence import mean_interval
from tuner.files.json_lines import append_line, cut_half_line, read_line, whole_lines
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Rule, SplitName, TrialRecord
from tuner.trial.run import run_editor

# Source: Mitchell et al. 2022 (arXiv:2206.06520), the numbers of their scaling study.
DEFAULT_COUNTS = (1, 5, 25, 75)
_NO_POINT = (
    "It is not a point of a scaling run: give another --out folder, or delete the line to run its "
    "point again."
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class ScalingPoint(_Record):
    """One editor on one draw of edits, run once."""

    key: str = Field(description="Hash of all that the point depends on.")
    editor: str
    edits: int = Field(ge=1, description="How many edits were made at once.")
    draw: int = Field(ge=0, description="Which edits of the split they were.")
    seed: int
    success: float = Field(description="Edit success (ES).")
    drawdown: float | None = Field(
        default=None, description="Drawdown (DD); none where the task does not measure it."
    )
    alpha: float = Field(description="Factor on the delta; 0 is the base model.")
    deviation: float | None = Field(description="Rise of the loss on general text.")
    verdict: Verdict | None = Field(description="Whether the budget is kept.")
    failure: str | None = Field(
        default=None, description="Why there is no edit; the figures are then the base model's."
    )
    seconds: float

    @property
    def difference(self) -> float | None:
        """ES − DD."""
        return None if self.drawdown is None else self.success - self.drawdown


@final
class Estimate(_Record):
    """A mean over draws; no interval where there are too few of them or they all agree."""

    mean: float
    interval: Interval | None


@final
class ScalingRow(_Record):
    """What an editor does at one number of edits, over all draws."""

    editor: str
    edits: int
    draws: int
    failed: int = Field(description="Draws without an edit; they count as the base model.")
    success: Estimate
    drawdown: Estimate | None
    difference: Estimate | None = Field(description="ES − DD.")


@final
@dataclass(frozen=True)
class ScalingRun:
    """Editors with given hyperparameters, to be run on more and more edits at once.

    Each number of edits is run on several draws: the first takes the split's first edits, the
    next the ones after them, and so on, from the start again where the split ends. `folder`
    holds a line per finished point, so that a scaling run that was stopped goes on where it was.

    Raises:
        ConfigError: a number of edits is too large for the split or given twice, two editors have
            the same name, or one cannot edit this model or this task.
    """

    model: LanguageModel
    task: Task
    editors: Sequence[Editor]
    general: GeneralText
    folder: Path
    counts: Sequence[int] = DEFAULT_COUNTS
    draws: int = 3
    epsilon: float = 1e-3
    rule: Rule = Rule.FITTED
    split: SplitName = SplitName.VAL
    seed: int = 0
    companions: Companions = field(default_factory=Companions)

    def __post_init__(self) -> None:
        names = [editor.name() for editor in self.editors]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"A scaling run needs editors of different names, but got {names}.")
        counts = list(self.counts)
        if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
            raise ConfigError(f"Numbers of edits must be positive and differ, but got {counts}.")
        if self.draws < 1:
            raise ConfigError(f"At least one draw is needed, but got {self.draws}.")
        held = len(self._split_of(self.task).canonical)
        if max(counts) > held:
            raise ConfigError(
                f"{max(counts)} edits at once need as many canonical rows, but the "
                f"{self.split} split of {self.task.name} has {held}. Give smaller numbers."
            )
        for editor in self.editors:
            editor.check_task(self.task)
            editor.check_model(self.model, self.companions)

    @property
    def total(self) -> int:
        """How many points there are."""
        return len(self.counts) * self.draws * len(self.editors)

    def run(self) -> Iterator[ScalingPoint]:
        """Yield every point, those of an earlier run first read from the folder.

        Raises:
            ConfigError: the folder's points cannot be read, or the budget is below the noise floor.
            TaskError: a row exceeds the model's context, or there is too little general text.
        """
        log = _Log(self.folder / "points.jsonl")
        known = log.read()
        shared = self._shared()
        for count in sorted(self.counts):
            for draw in range(self.draws):
                keys = [self._key(shared, editor, count, draw) for editor in self.editors]
                evaluator: Evaluator | None = None
                for key, editor in zip(keys, self.editors, strict=True):
                    if key in known:
                        yield known[key]
                        continue
                    evaluator = evaluator or self._evaluator(count, draw)
                    point = self._point(key, editor, evaluator, count, draw)
                    log.add(point)
                    yield point

    def _evaluator(self, count: int, draw: int) -> Evaluator:
        return Evaluator(
            self.model,
            drawn(self.task, self.split, count, draw),
            Budget(epsilons=(self.epsilon,)),
            self.general,
            companions=self.companions,
        )

    def _point(
        self, key: str, editor: Editor, evaluator: Evaluator, count: int, draw: int
    ) -> ScalingPoint:
        seed = self.seed + draw
        record = run_editor(evaluator, editor, seed=seed, split=self.split, rule=self.rule).record
        answer = None if record.failure is not None else record.answer(self.epsilon, self.rule)
        scores = answer.scores if answer else evaluator.base_scores(self.split)
        return ScalingPoint(
            key=key,
            editor=editor.name(),
            edits=count,
            draw=draw,
            seed=seed,
            success=scores.success,
            drawdown=scores.figures().get("drawdown"),
            alpha=answer.alpha if answer else 0.0,
            deviation=answer.deviation.estimate if answer else None,
            verdict=answer.verdict if answer else None,
            failure=record.failure,
            seconds=_seconds(record),
        )

    def _split_of(self, task: Task) -> Any:
        return task.val if self.split is SplitName.VAL else task.test

    def _shared(self) -> list[Any]:
        """Return what all points depend on."""
        return [
            self.model.fingerprint,
            str(self.model.dtype),
            self.model.device.type,
            self.task.hash,
            self.general.corpus(TextPart.SEARCH).hash,
            self.general.corpus(TextPart.AUXILIARY).hash,
            self.epsilon,
            self.rule,
            self.split,
        ]

    def _key(self, shared: list[Any], editor: Editor, count: int, draw: int) -> str:
        own = [editor.name(), editor.model_dump(mode="json"), count, draw, self.seed + draw]
        return hashlib.sha256(json.dumps([*shared, *own], sort_keys=True).encode()).hexdigest()


def drawn(task: Task, split: SplitName, count: int, draw: int) -> Task:
    """Return the task with `count` edits at once, from another place of a split per draw."""
    part = task.val if split is SplitName.VAL else task.test
    rows = part.canonical.rows
    start = draw * count % len(rows)
    turned = part.canonical.model_copy(update={"rows": (*rows[start:], *rows[:start])})
    fields = {name: getattr(task, name) for name in Task.model_fields}
    # Made anew, not copied: a copy would keep the hash.
    fields[split.value] = part.model_copy(update={"canonical": turned})
    return Task(**fields).with_edits(count)


def summarise(
    points: Sequence[ScalingPoint], *, confidence: float = 0.95
) -> tuple[ScalingRow, ...]:
    """Return a row per editor and number of edits, means over the draws with their intervals."""
    groups: dict[tuple[str, int], list[ScalingPoint]] = {}
    for point in points:
        groups.setdefault((point.editor, point.edits), []).append(point)
    rows = []
    for (editor, edits), group in groups.items():
        rows.append(
            ScalingRow(
                editor=editor,
                edits=edits,
                draws=len(group),
                failed=sum(point.failure is not None for point in group),
                success=_estimate([point.success for point in group], confidence, 0.0, 1.0),
                # A drawdown may be a share or a divergence; both are positive.
                drawdown=_measured([point.drawdown for point in group], confidence, 0.0, math.inf),
                difference=_measured(
                    [point.difference for point in group], confidence, -math.inf, 1.0
                ),
            )
        )
    order = {editor: place for place, editor in enumerate(dict.fromkeys(p.editor for p in points))}
    return tuple(sorted(rows, key=lambda row: (order[row.editor], row.edits)))


def _measured(
    values: Sequence[float | None], confidence: float, least: float, most: float
) -> Estimate | None:
    known = [value for value in values if value is not None]
    return _estimate(known, confidence, least, most) if len(known) == len(values) else None


def _estimate(values: Sequence[float], confidence: float, least: float, most: float) -> Estimate:
    """Return the mean; few draws make wide intervals, which end where the figure itself must."""
    interval = mean_interval(values, confidence=confidence)
    if interval is not None:
        interval = interval.model_copy(
            update={"low": max(least, interval.low), "high": min(most, interval.high)}
        )
    return Estimate(mean=sum(values) / len(values), interval=interval)


def _seconds(record: TrialRecord) -> float:
    return sum(record.seconds.values())


@final
@dataclass(frozen=True)
class _Log:
    """A file with a line per finished point."""

    path: Path

    def read(self) -> dict[str, ScalingPoint]:
        """Return the points of earlier runs; a line that a stopped run left half is taken away.

        Raises:
            ConfigError: the file cannot be read, or another line is not a point.
            DiskError: it cannot be written.
        """
        lines = whole_lines(self.path)
        points = {}
        for number, line in enumerate(lines, start=1):
            point = read_line(self.path, number, line, ScalingPoint, _NO_POINT)
            points[point.key] = point
        if os.path.lexists(self.path):
            cut_half_line(self.path)
        return points

    def add(self, point: ScalingPoint) -> None:
        """Write a point, so that it outlives this run.

        Raises:
            DiskError: the file cannot be written.
        """
        append_line(self.path, point)
