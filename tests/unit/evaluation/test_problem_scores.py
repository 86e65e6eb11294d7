"""Success and drawdown of the four edit problems, against values worked out by hand."""

import math

import pytest
import torch

from tests.unit.evaluation.test_fact_scores import (
    PROMPTS,
    TARGETS,
    argmaxes,
    mean_loss,
    noise,
)
from tuner.editing.constraint import Constraint
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind, Split, SuccessCriterion
from tuner.editors.look_up.memory import LookUpDelta
from tuner.errors import EditError, TaskError
from tuner.evaluation.success import SuccessMeter

EVERY = tuple((prompt, target) for prompt in PROMPTS for target in TARGETS)


def split_of(ood: tuple[Example, ...], hard: tuple[Example, ...] = ()) -> Split:
    def of(rows: tuple[Example, ...]) -> ExampleSet:
        return ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)

    return Split(canonical=of(ood), ood=of(ood), hard_negatives=of(hard))


def pairs(record: str | None = None) -> tuple[Example, ...]:
    return tuple(
        Example(prompt=p, target=TARGETS[i], contrast=TARGETS[i - 1], record=record)
        for p in PROMPTS
        for i in range(len(TARGETS))
    )


def test_a_sequence_succeeds_as_a_whole(neox: LanguageModel) -> None:
    prompt = PROMPTS[0]
    said = argmaxes(neox, prompt, " big big")
    first = neox.tokenizer.decode(said[:1])
    if neox.encode(first) != said[:1]:
        pytest.skip("this random model does not speak in whole characters")
    rows = (Example(prompt=prompt, target=first), Example(prompt=prompt, target=first + " Lome"))
    # All but some tokens of the second target are wrong: half a row is not a success.
    assert argmaxes(neox, prompt, first + " Lome") != neox.encode(first + " Lome")
    found = SuccessMeter(neox, split_of(rows), rule=SuccessCriterion.SEQUENCE).scores()
    assert found.row_success == (1.0, 0.0)
    assert found.success == found.efficacy == 0.5
    assert found.exact is not None


def test_drawdown_of_sequences_is_the_share_of_changed_predictions(model: LanguageModel) -> None:
    hard = tuple(Example(prompt=p, target=t) for p, t in EVERY)
    meter = SuccessMeter(model, split_of(hard[:1], hard), rule=SuccessCriterion.SEQUENCE)
    before = [argmaxes(model, p, t) for p, t in EVERY]
    assert meter.scores(["drawdown"]).drawdown == 0.0
    delta = noise(model, 0.5)
    with model.edited(delta):
        after = [argmaxes(model, p, t) for p, t in EVERY]
        found = meter.scores(["drawdown"]).drawdown
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    assert changed > 0
    # It is disagreement with the base model, not a loss: the targets are not what it says.
    assert found == changed / len(EVERY)


def test_drawdown_of_claims_is_the_share_of_flipped_preferences(neox: LanguageModel) -> None:
    hard = pairs()

    def prefers(row: Example) -> bool:
        assert row.contrast is not None
        target = mean_loss(neox, row.prompt, row.target)
        return target < mean_loss(neox, row.prompt, row.contrast)

    meter = SuccessMeter(neox, split_of(hard[:1], hard), rule=SuccessCriterion.LIKELIER)
    before = [prefers(row) for row in hard]
    assert meter.scores(["drawdown"]).drawdown == 0.0
    with neox.edited(noise(neox, 2.0)):
        after = [prefers(row) for row in hard]
        found = meter.scores(["drawdown"]).drawdown
    flipped = sum(one != other for one, other in zip(before, after, strict=True))
    assert flipped > 0
    assert found == flipped / len(hard)


@torch.no_grad()
def log_probs(model: LanguageModel, prompt: str, target: str) -> torch.Tensor:
    ids = model.encode_prompt(prompt)
    start, after = len(ids), model.encode(target)
    logits = model.network(input_ids=torch.tensor([ids + after])).logits[0]
    return logits[start - 1 : -1].double().log_softmax(-1)


def test_drawdown_of_dialogue_is_the_divergence_per_token_of_all_rows(neox: LanguageModel) -> None:
    hard = tuple(Example(prompt=p, target=t) for p, t in EVERY)
    meter = SuccessMeter(neox, split_of(pairs(), hard), rule=SuccessCriterion.SENTIMENT)
    before = torch.cat([log_probs(neox, p, t) for p, t in EVERY])
    assert meter.scores(["drawdown"]).drawdown == 0.0
    with neox.edited(noise(neox, 0.3)):
        after = torch.cat([log_probs(neox, p, t) for p, t in EVERY])
        found = meter.scores(["drawdown"]).drawdown
    wanted = (before.exp() * (before - after)).sum(dim=1).mean()
    assert wanted > 0
    assert found == pytest.approx(float(wanted), rel=1e-4)


def test_sentiment_is_the_side_taken_times_what_is_left_of_the_topic(neox: LanguageModel) -> None:
    rows = (*pairs("a")[:3], *pairs("b")[5:7])
    meter = SuccessMeter(neox, split_of(rows), rule=SuccessCriterion.SENTIMENT)

    def likelihood(record: str, side: str) -> float:
        """The mean log-likelihood per token over the rows of an edit."""
        some = [(row.prompt, getattr(row, side)) for row in rows if row.record == record]
        counts = [len(neox.encode(text)) for _, text in some]
        summed = (-mean_loss(neox, p, t) * n for (p, t), n in zip(some, counts, strict=True))
        return sum(summed) / sum(counts)

    base = {record: likelihood(record, "target") for record in "ab"}
    delta = noise(neox, 0.5)
    for edit in (None, delta, delta.scaled(-1)):
        with neox.edited(edit if edit is not None else delta.scaled(0.0)):
            found = meter.scores()
            wanted = []
            for record in "ab":
                same, opposite = (likelihood(record, side) for side in ("target", "contrast"))
                z_sent = 1 / (1 + math.exp(opposite - same))
                wanted.append(z_sent * min(1.0, math.exp(same - base[record])))
        assert found.row_success == pytest.approx([wanted[0]] * 3 + [wanted[1]] * 2, rel=1e-4)
        assert found.success == found.efficacy == pytest.approx(sum(wanted) / 2, rel=1e-4)
        assert found.exact is not None
    gain = meter.gain_interval(found, found)
    assert gain.low <= 0 <= gain.high


def test_drawdown_can_be_limited(neox: LanguageModel) -> None:
    limit = Constraint.model_validate({"metric": "drawdown", "ceiling": 0.05})
    assert limit.violation(edited=0.1, base=0.0) == 1.0
    assert limit.violation(edited=0.0, base=0.0) == -1.0
    assert limit.words == "drawdown at most 0.05"
    with pytest.raises(ValueError, match="drawdown needs exactly one of `rise` and `ceiling`"):
        Constraint.model_validate({"metric": "drawdown", "floor": 0.05})


def test_what_the_base_says_is_not_read_inside_an_edit(neox: LanguageModel) -> None:
    hard = tuple(Example(prompt=p, target=t, contrast=" Lome") for p, t in EVERY)
    keys = torch.zeros(1, neox.network.config.hidden_size)
    memory = LookUpDelta(1.0, keys, ((7,),), threshold=1.0, logit=3.0, end=neox.end_id)
    for rule in (SuccessCriterion.SEQUENCE, SuccessCriterion.LIKELIER, SuccessCriterion.SENTIMENT):
        for delta in (noise(neox, 1.0), memory):
            with neox.edited(delta), pytest.raises(EditError, match="before an edit"):
                SuccessMeter(neox, split_of(hard[:1], hard), rule=rule)
        SuccessMeter(neox, split_of(hard[:1], hard), rule=rule)


def test_drawdown_needs_the_rows_and_what_the_rule_compares(neox: LanguageModel) -> None:
    plain = tuple(Example(prompt=p, target=t) for p, t in EVERY)
    rows = pairs()
    for rule, ood, hard in (
        (SuccessCriterion.LIKELIER, rows, plain),  # no contrasts to prefer
        (SuccessCriterion.SEQUENCE, rows, ()),
        (SuccessCriterion.TOKENS, rows, plain),  # the loss of hard negatives stands for it
    ):
        assert SuccessMeter(neox, split_of(ood, hard), rule=rule).scores().drawdown is None
    with pytest.raises(TaskError, match="needs a `contrast`"):
        SuccessMeter(neox, split_of(plain), rule=SuccessCriterion.SENTIMENT)


def test_a_broken_model_is_no_failure_of_the_rows(neox: LanguageModel) -> None:
    for rule in (SuccessCriterion.SEQUENCE, SuccessCriterion.LIKELIER, SuccessCriterion.SENTIMENT):
        meter = SuccessMeter(neox, split_of(pairs(), pairs()), rule=rule)
        with neox.edited(noise(neox, float("nan"))):
            with pytest.raises(EditError, match="NaN"):
                meter.success()
            with pytest.raises(EditError, match="NaN"):
                meter.scores(["drawdown"])
