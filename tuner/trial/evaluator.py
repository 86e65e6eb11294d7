"""What outlives a trial: the base model, the task and the text, and what is measured on them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from tuner.deltas.memory.memory import MemoryDelta
from tuner.editing.companions import Companions
from tuner.editing.constraint import Constraint, strictest
from tuner.editing.corpus import GeneralText, TextPart
from tuner.editing.delta import Delta
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, LossKind, Split, Task
from tuner.evaluation.constraints import check_measured, violations
from tuner.evaluation.deviation.budget import Budget, Certificate
from tuner.evaluation.deviation.gradient_store import GradientStore
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.evaluation.metrics import METRICS
from tuner.evaluation.metrics._routing import scope_figures
from tuner.evaluation.scores import Scores
from tuner.evaluation.success import SuccessMeter
from tuner.files.cache import Cache, cache_folder
from tuner.trial.records import SplitName


@final
class Evaluator:
    """A base model, a task and general text, with all that does not depend on the trial.

    Long-lived: base losses and base scores are computed once and serve every trial. Edits must
    keep the task's constraints and the `constraints` given here; `metrics` are only reported.

    Raises:
        ConfigError: a budget is below the noise floor of this model, precision and device, or a
            constraint or a metric is about something that the task cannot measure.
        TaskError: a row exceeds the model's context, or there is too little general text.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        budget: Budget,
        general: GeneralText,
        *,
        constraints: Sequence[Constraint] = (),
        metrics: Sequence[str] = (),
        cache: Cache | None = None,
        companions: Companions | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.budget = budget
        self.constraints = strictest((*task.constraints, *constraints))
        self.metrics = tuple(metrics)
        """What is reported beside the usual figures, without a limit."""
        check_measured((*self.constraints, *self.metrics), task)
        self.general = general
        self._cache = cache or Cache(cache_folder())
        self._gradients = GradientStore(model, general, self._cache)
        self._meter = self._deviation_meter(TextPart.SEARCH, budget.confidence)
        self.noise_floor = self._meter.check_budget(budget)
        self._splits = {
            SplitName.VAL: task.val.limited(task.simultaneous_edits),
            SplitName.TEST: task.test.limited(task.simultaneous_edits),
        }
        self._certifiers: dict[float, DeviationMeter] = {}
        self._success: dict[SplitName, SuccessMeter] = {}
        self._base: dict[SplitName, Scores] = {}
        self.companions = companions or Companions(device=str(model.device))
        """The small models that some editors need beside the model, loaded once for all trials."""
        self.auxiliary = Auxiliary(
            general=general.corpus(TextPart.AUXILIARY),
            training=task.train,
            cache=self._cache,
            companions=self.companions,
        )
        """What editors may read beyond the examples, whatever the split."""

    def certify(self, delta: Delta, epsilon: float, *, confidence: float = 0.95) -> Certificate:
        """Return the statement, from text that no search has read, that `delta` keeps a budget.

        Raises:
            EditError: the edited model's loss is NaN or infinite.
        """
        if confidence not in self._certifiers:
            self._certifiers[confidence] = self._deviation_meter(TextPart.CONFIRMATION, confidence)
        return self._certifiers[confidence].certify(delta, epsilon)

    def base_scores(self, split: SplitName) -> Scores:
        """Return what the unedited model does on a split."""
        if split not in self._base:
            self._base[split] = self.success_meter(split).scores()
        return self._base[split]

    def success_meter(self, split: SplitName) -> SuccessMeter:
        """Return the judge of a split."""
        if split not in self._success:
            limited = (constraint.metric for constraint in self.constraints)
            self._success[split] = SuccessMeter(
                self.model,
                self.split(split),
                self.task.threshold,
                self.task.success,
                metrics=dict.fromkeys((*METRICS.names(), *limited, *self.metrics)),
            )
        return self._success[split]

    def constrained_scores(self, split: SplitName, *, reported: bool = False) -> Scores:
        """Return success on a split with what the constraints are about, and nothing else.

        With `reported`, also the metrics that are to be reported.
        """
        metrics = dict.fromkeys(constraint.metric for constraint in self.constraints)
        if reported:
            metrics |= dict.fromkeys(self.metrics)
        return self.success_meter(split).scores(metrics)

    def full_scores(self, split: SplitName, delta: Delta) -> Scores:
        """Return all scores of an edit; of a memory also how well it tells its edits' prompts."""
        meter = self.success_meter(split)
        with self.model.edited(delta):
            scores = meter.scores()
        if not isinstance(delta, MemoryDelta):
            return scores
        return scores.model_copy(update=scope_figures(self.model, delta, self.split(split)))

    def violations(self, split: SplitName, edited: Scores) -> dict[str, float]:
        """Return by how much an edit breaks each constraint beside the budget."""
        if not self.constraints:
            return {}
        return violations(self.constraints, edited, self.base_scores(split))

    def split(self, name: SplitName) -> Split:
        """Return a split of the task, with the edits that are made at once."""
        return self._splits[name]

    @property
    def meter(self) -> DeviationMeter:
        """The deviation on the search corpus."""
        return self._meter

    def auxiliary_for(self, split: SplitName) -> Auxiliary:
        """Return what editors may read beyond the examples, the split's true facts among it."""
        facts = self.split(split).facts
        if not facts:
            return self.auxiliary
        return replace(self.auxiliary, facts=ExampleSet(loss=LossKind.LIKELIHOOD, rows=facts))

    def check_unchanged(self) -> None:
        """Verify that no trial has changed the base model, nor a companion model.

        Raises:
            EditError: a weight differs from what was loaded.
        """
        self.model.check_unchanged()
        self.companions.check_unchanged()

    def _deviation_meter(self, part: TextPart, confidence: float) -> DeviationMeter:
        return DeviationMeter(
            self.model,
            self.general.corpus(part),
            confidence=confidence,
            two_sided=self.budget.two_sided,
            divergence=self.budget.divergence,
            gradient_of=self._gradients.of,
            cache=self._cache,
        )
