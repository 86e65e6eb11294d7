"""The published figures of fact editing, against values worked out by hand."""

import pytest
import torch

from tuner.editing.delta import Dense, WeightDelta
from tuner.editing.likelihood import encode_continuation, predicted_tokens
from tuner.editing.model import LanguageModel
from tuner.editing.task import (
    Example,
    ExampleSet,
    GenerationPrompt,
    LossKind,
    Split,
    SuccessCriterion,
)
from tuner.errors import ConfigError, EditError
from tuner.evaluation.metrics import METRICS
from tuner.evaluation.metrics._facts import harmonic_mean
from tuner.evaluation.scores import Scores
from tuner.evaluation.statistics.grouping import Grouping
from tuner.evaluation.success import SuccessMeter


def split_of(
    canonical: tuple[Example, ...],
    ood: tuple[Example, ...] | None = None,
    neighbours: tuple[Example, ...] = (),
    generations: tuple[GenerationPrompt, ...] = (),
) -> Split:
    return Split(
        canonical=ExampleSet(loss=LossKind.LIKELIHOOD, rows=canonical),
        ood=ExampleSet(loss=LossKind.LIKELIHOOD, rows=ood or canonical),
        hard_negatives=ExampleSet(loss=LossKind.LIKELIHOOD, rows=()),
        neighbours=neighbours,
        generations=generations,
    )


@torch.no_grad()
def mean_loss(model: LanguageModel, prompt: str, target: str) -> float:
    """ℓ per token, one sequence at a time and one position at a time."""
    before, after = model.encode_prompt(prompt), model.encode(target)
    log_probs = model.network(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    summed = sum(
        -float(log_probs[len(before) + place - 1, token]) for place, token in enumerate(after)
    )
    return summed / len(after)


@torch.no_grad()
def argmaxes(model: LanguageModel, prompt: str, target: str) -> list[int]:
    """The most likely token at each place of the target, from the prefix before it alone."""
    ids, after = model.encode_prompt(prompt), model.encode(target)
    found = []
    for token in after:
        found.append(int(model.network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        ids = [*ids, token]
    return found


PROMPTS = ("The capital of Togo is", "a big town of Chile is", "is", "a city of Mauritius is")
TARGETS = (" Port Louis", " Lome", " Santiago and a big town", " big")


def noise(model: LanguageModel, size: float) -> WeightDelta:
    """A change that shakes the last layer."""
    name = model.architecture.mlp_modules(model.layer_count - 1)[-1] + ".weight"
    weight = model.network.get_parameter(name)
    random = torch.Generator().manual_seed(3)
    return WeightDelta({name: Dense(size * torch.randn(weight.shape, generator=random))})


def test_likelier_compares_losses_per_token(model: LanguageModel) -> None:
    pairs = [(t, c) for t in TARGETS for c in TARGETS if t != c]
    rows = tuple(Example(prompt=p, target=t, contrast=c) for p in PROMPTS for t, c in pairs)
    wanted = [
        float(mean_loss(model, row.prompt, row.target) < mean_loss(model, row.prompt, row.contrast))
        for row in rows
        if row.contrast is not None
    ]
    found = SuccessMeter(model, split_of(rows), rule=SuccessCriterion.LIKELIER).success()
    assert list(found.row_success) == wanted
    assert found.success == 0.5  # each pair stands there both ways round


def test_tokens_are_predicted_from_the_places_before_them(model: LanguageModel) -> None:
    rows = [encode_continuation(model, p, t) for p in PROMPTS for t in TARGETS]
    together = predicted_tokens(model.network, rows, model.end_id)
    alone = [argmaxes(model, p, t) for p in PROMPTS for t in TARGETS]
    assert [row.tolist() for row in together] == alone


def test_a_row_scores_the_share_of_its_tokens(neox: LanguageModel) -> None:
    prompt = "The capital of Togo is"
    first = neox.tokenizer.decode(argmaxes(neox, prompt, " big")[:1])
    if len(neox.encode(first)) != 1:
        pytest.skip("this random model does not speak in whole characters")
    row = Example(prompt=prompt, target=first + " Lome")
    second = neox.encode(row.target)[1:]
    hits = 1 + sum(
        a == b for a, b in zip(argmaxes(neox, prompt, row.target)[1:], second, strict=True)
    )
    found = SuccessMeter(neox, split_of((row,)), rule=SuccessCriterion.TOKENS).success()
    assert found.row_success == (hits / len(neox.encode(row.target)),)
    assert 0 < found.success < 1


def test_rows_are_averaged_within_a_record_and_then_over_records() -> None:
    def row(record: str | None, subject: str | None = None) -> Example:
        return Example(prompt=f"{subject}", target=" x", record=record, subject=subject)

    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    records = Grouping.of([row("a"), row("a"), row("a"), row("b"), row(None)])
    assert records.mean(values) == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert records.count == 3
    # Without records the rows count alike, whatever their subjects: as it always was.
    subjects = Grouping.of([row(None, "a")] * 3 + [row(None, "b")] * 2)
    assert subjects.mean(values) == 3 / 5
    assert subjects.count == 2


def test_the_interval_of_a_gain_is_about_the_mean_over_records(neox: LanguageModel) -> None:
    rows = tuple(
        Example(prompt=PROMPTS[0], target=" big", record=str(record))
        for record in range(8)
        for _ in range(7 if record == 0 else 1)
    )
    meter = SuccessMeter(neox, split_of(rows), threshold=1.0)
    base = Scores(success=0.0, row_success=(0.0,) * len(rows))
    # One record with many rows gains everything, the others nothing.
    edited = Scores(success=1 / 8, row_success=(1.0,) * 7 + (0.0,) * 7)
    interval = meter.gain_interval(edited, base)
    assert interval.low <= 1 / 8 <= interval.high < 0.5


def test_harmonic_mean() -> None:
    assert harmonic_mean(1.0, 0.5, 0.25) == pytest.approx(3 / 7)
    assert harmonic_mean(1.0, 0.0, 0.5) == 0.0


@pytest.mark.parametrize("rule", [SuccessCriterion.LIKELIER, SuccessCriterion.TOKENS])
def test_the_edit_score_joins_the_three_row_sets(
    neox: LanguageModel, rule: SuccessCriterion
) -> None:
    def rows(prompt: str, *order: int) -> tuple[Example, ...]:
        return tuple(
            Example(prompt=prompt, target=TARGETS[i], contrast=TARGETS[i - 1], record=str(i))
            for i in order
        )

    split = split_of(rows(PROMPTS[0], 0, 1, 2), rows(PROMPTS[1], 0, 1), rows(PROMPTS[3], 3, 0))
    found = SuccessMeter(neox, split, rule=rule).scores()

    def share(judged: tuple[Example, ...]) -> float:
        return SuccessMeter(neox, split_of(judged), rule=rule).success().success

    assert found.efficacy == share(split.canonical.rows)
    assert found.generalisation == found.success == share(split.ood.rows)
    assert found.specificity == share(split.neighbours)
    assert found.edit_score == harmonic_mean(found.efficacy, found.success, found.specificity)
    assert found.exact is not None
    assert found.efficacy_exact is not None
    assert found.fluency is None


def test_locality_against_gold_and_against_the_base(neox: LanguageModel) -> None:
    near = tuple(Example(prompt=p, target=t) for p in PROMPTS for t in TARGETS)
    split = split_of((Example(prompt=PROMPTS[0], target=" big"),), neighbours=near)
    meter = SuccessMeter(neox, split, rule=SuccessCriterion.TOKENS)
    base = [argmaxes(neox, row.prompt, row.target) for row in near]
    before = meter.scores()
    assert before.locality_base == 1.0
    delta = noise(neox, 2.0)
    with neox.edited(delta):
        after = meter.scores()
        edited = [argmaxes(neox, row.prompt, row.target) for row in near]
    gold = [neox.encode(row.target) for row in near]

    def agreement(wanted: list[list[int]]) -> float:
        shares = [
            sum(a == b for a, b in zip(said, row, strict=True)) / len(row)
            for said, row in zip(edited, wanted, strict=True)
        ]
        return sum(shares) / len(shares)

    assert after.locality_base == pytest.approx(agreement(base))
    assert after.locality_gold == after.specificity == pytest.approx(agreement(gold))
    assert after.locality_base < 1
    with neox.edited(delta), pytest.raises(EditError, match="before an edit"):
        SuccessMeter(neox, split, rule=SuccessCriterion.TOKENS)


def test_other_tasks_have_no_fact_figures(neox: LanguageModel) -> None:
    split = split_of((Example(prompt=PROMPTS[0], target=" big", subject="Togo"),))
    found = SuccessMeter(neox, split, threshold=1.0).scores()
    assert set(found.figures()) == {"success", "exact"}
    with pytest.raises(ConfigError, match="needs a threshold"):
        SuccessMeter(neox, split)


def test_a_broken_model_is_no_failure_of_the_rows(neox: LanguageModel) -> None:
    row = Example(prompt=PROMPTS[0], target=" big", contrast=" Lome")
    for rule in (SuccessCriterion.LIKELIER, SuccessCriterion.TOKENS):
        meter = SuccessMeter(neox, split_of((row,)), rule=rule)
        with neox.edited(noise(neox, float("nan"))), pytest.raises(EditError, match="NaN"):
            meter.success()


def test_scores_written_before_shares_of_rows_still_load() -> None:
    old = '{"success": 0.5, "exact": null, "row_success": [true, false]}'
    assert Scores.model_validate_json(old).row_success == (1.0, 0.0)


def test_generation_prompts_bring_fluency_and_consistency(neox: LanguageModel) -> None:
    prompts = (GenerationPrompt(prompt="Togo is", record="1", references=("a big town",)),)
    split = split_of((Example(prompt=PROMPTS[0], target=" big"),), generations=prompts)
    found = SuccessMeter(neox, split, threshold=1.0).scores()
    assert found.fluency is not None
    assert found.consistency is not None
    assert found.efficacy is None


@pytest.mark.parametrize("rule", [SuccessCriterion.LIKELIER, SuccessCriterion.TOKENS])
def test_some_metrics_alone_are_as_among_all(neox: LanguageModel, rule: SuccessCriterion) -> None:
    rows = tuple(Example(prompt=p, target=" big", contrast=" Lome") for p in PROMPTS)
    told = (GenerationPrompt(prompt="Togo is", record="1", references=("a big town",)),)
    meter = SuccessMeter(neox, split_of(rows, neighbours=rows, generations=told), rule=rule)
    every = meter.scores()
    for metric in METRICS.names():
        assert getattr(meter.scores([metric]), metric) == getattr(every, metric), metric
    assert meter.scores([]) == meter.success()
    # What the model says by itself takes longest, and is asked for only where it is wanted.
    some = meter.scores(["specificity"])
    assert some.specificity is not None
    assert {some.exact, some.efficacy_exact, some.fluency, some.consistency} == {None}
