"""What every metric keeps, as a test class to subclass in pytest.

class TestEcho(MetricContract):
metric = Echo
"""

import random
from typing import ClassVar

import numpy as np
import pytest
import torch

from tuner.editing.model import LanguageModel
from tuner.editing.task import (
    Example,
    ExampleSet,
    GenerationPrompt,
    LossKind,
    Passage,
    Split,
    SuccessCriterion,
)
from tuner.errors import EditError
from tuner.evaluation.metrics import METRICS, Metric
from tuner.evaluation.success import SuccessMeter
from tuner.testing.tiny_models import make_tiny_model

_CRITERIA = (
    SuccessCriterion.THRESHOLD,
    SuccessCriterion.LIKELIER,
    SuccessCriterion.TOKENS,
    SuccessCriterion.SEQUENCE,
)
_FACTS = (("Mauritius", " Port Louis"), ("Togo", " Lome"), ("Chile", " Santiago"))


class MetricContract:
    """Tests that hold for every metric.

    They measure it on a tiny random model and on rows of every kind, by each success criterion
    that `is_measured_on` accepts, and demand that

    - it has a label for tables, says which way is better, and is found again by its name;
    - `is_measured_on` accepts the rows of at least one criterion, and what it accepts gives a
      finite number; on a split with nothing but edits and their paraphrases it may give none;
    - the same model gives the same number, also where the rows come in another order,
      unless it samples text (`draws_by_place`);
    - the model and the global random state of Python, NumPy and torch stay as they are;
    - on a model that computes NaN it raises EditError and nothing else, if it raises.
    """

    metric: ClassVar[type[Metric]]
    """The class under test."""
    tolerance: ClassVar[float] = 1e-4
    """How far two numbers may be apart that differ by the order of rows alone."""
    draws_by_place: ClassVar[bool] = False
    """Whether text is sampled with draws that depend on the place of its prompt."""

    @pytest.fixture
    def model(self) -> LanguageModel:
        """Return the model that is judged, unedited."""
        return make_tiny_model("gpt_neox")

    def split(self, criterion: SuccessCriterion) -> Split:
        """Return rows of every kind for a criterion; override it for a metric that needs others."""
        return _split(criterion, everything=True)

    @property
    def name(self) -> str:
        """The name by which studies call it."""
        return METRICS.name_of(self.metric)

    @property
    def criteria(self) -> tuple[SuccessCriterion, ...]:
        """The criteria by which it is measured."""
        return tuple(
            criterion
            for criterion in _CRITERIA
            if self.metric.is_measured_on(self.split(criterion), criterion)
        )

    def value(
        self, model: LanguageModel, split: Split, criterion: SuccessCriterion
    ) -> float | None:
        """Return the metric of a model as it stands."""
        meter = SuccessMeter(model, split, 1.5, criterion, metrics=[self.name])
        return meter.scores([self.name]).figures().get(self.name)

    def test_it_is_found_by_its_name_and_says_what_it_is(self) -> None:
        assert METRICS.find(self.name) is self.metric
        assert self.metric.label.strip() == self.metric.label != ""
        assert "\n" not in self.metric.label
        assert isinstance(self.metric.lower_is_better, bool)

    def test_it_is_measured_by_some_criterion(self) -> None:
        assert self.criteria

    def test_what_it_accepts_gives_a_finite_number(self, model: LanguageModel) -> None:
        for criterion in self.criteria:
            value = self.value(model, self.split(criterion), criterion)
            assert value is not None
            assert np.isfinite(value)

    def test_it_bears_a_split_of_edits_and_paraphrases_alone(self, model: LanguageModel) -> None:
        for criterion in _CRITERIA:
            bare = _split(criterion, everything=False)
            if self.metric.is_measured_on(bare, criterion):
                value = self.value(model, bare, criterion)
                assert value is None or np.isfinite(value)

    def test_the_order_of_rows_does_not_matter(self, model: LanguageModel) -> None:
        for criterion in self.criteria:
            split = self.split(criterion)
            forwards = self.value(model, split, criterion)
            assert self.value(model, split, criterion) == forwards
            if self.draws_by_place:
                continue
            backwards = self.value(model, _reversed(split), criterion)
            assert backwards == pytest.approx(forwards, abs=self.tolerance)

    def test_the_model_and_the_random_state_are_left_alone(self, model: LanguageModel) -> None:
        before = _random_states()
        for criterion in self.criteria:
            self.value(model, self.split(criterion), criterion)
        model.check_unchanged()
        assert _random_states() == before

    def test_a_model_that_computes_nan_is_an_edit_error_at_most(self, model: LanguageModel) -> None:
        with torch.no_grad():
            for weight in model.network.parameters():
                weight.mul_(torch.nan)
        broken = LanguageModel(model.network, model.tokenizer, id="broken")
        for criterion in self.criteria:
            try:
                self.value(broken, self.split(criterion), criterion)
            except EditError:
                continue


def _split(criterion: SuccessCriterion, *, everything: bool) -> Split:
    loss = LossKind.PREFER if criterion is SuccessCriterion.LIKELIER else LossKind.LIKELIHOOD
    contrast = " big" if loss is LossKind.PREFER else None

    def rows(frame: str) -> tuple[Example, ...]:
        return tuple(
            Example(
                prompt=frame.format(country),
                target=city,
                contrast=contrast,
                subject=country,
                record=country,
            )
            for country, city in _FACTS
        )

    near = rows("The town of {} is")
    return Split(
        canonical=ExampleSet(loss=loss, rows=rows("The capital of {} is")),
        ood=ExampleSet(loss=loss, rows=rows("a big town of {} is")),
        hard_negatives=ExampleSet(loss=loss, rows=near if everything else ()),
        related=(
            (Passage(text="The capital city of Togo is Lome ."), Passage(text="a big town ."))
            if everything
            else ()
        ),
        neighbours=near if everything else (),
        generations=(
            tuple(
                GenerationPrompt(
                    prompt=f"The city of {country} is",
                    record=country,
                    references=(f"{city} is a big town .",),
                )
                for country, city in _FACTS
            )
            if everything
            else ()
        ),
    )


def _reversed(split: Split) -> Split:
    def turned(rows: ExampleSet) -> ExampleSet:
        return ExampleSet(loss=rows.loss, rows=rows.rows[::-1])

    return Split(
        canonical=turned(split.canonical),
        ood=turned(split.ood),
        hard_negatives=turned(split.hard_negatives),
        related=split.related[::-1],
        neighbours=split.neighbours[::-1],
        generations=split.generations[::-1],
        facts=split.facts,
    )


def _random_states() -> dict[str, object]:
    generator, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (generator, np.asarray(keys).tolist(), rest),
        "torch": torch.random.get_rng_state().tolist(),
    }
