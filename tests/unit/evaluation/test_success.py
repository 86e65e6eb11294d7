"""Success, exact generation and their bookkeeping."""

import math

import pytest
import torch

from tuner.editing.generation import generate_greedily
from tuner.editing.likelihood import (
    encode_example,
    success_losses,
)
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind, Passage, Split, Task
from tuner.editors.look_up.memory import LookUpDelta
from tuner.evaluation.success import SuccessMeter


def test_success_is_the_share_of_rows_under_the_threshold(model: LanguageModel, task: Task) -> None:
    rows = [encode_example(model, row) for row in task.val.ood.rows]
    with torch.no_grad():
        losses = success_losses(model.network, task.loss, rows, model.end_id).sort().values
    for threshold, share in (
        (float(losses[0]) - 1, 0.0),
        (float(losses[0] + losses[1]) / 2, 1 / 3),
        (float(losses[-1]) + 1, 1.0),
    ):
        found = SuccessMeter(model, task.val, threshold).success()
        assert found.success == pytest.approx(share)
        assert sum(found.row_success) == round(3 * share)


def test_batched_generation_equals_single(model: LanguageModel) -> None:
    prompts = [
        model.encode_prompt(text)
        for text in ("The capital of Togo is", "is", "a big town of Mauritius and Chile is")
    ]
    together = generate_greedily(model, prompts, 5)
    alone = [generate_greedily(model, [prompt], 5)[0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        # After the end of text a batch goes on padding.
        end = other.index(model.end_id) + 1 if model.end_id in other else len(other)
        assert one[:end] == other[:end]


def test_settings_that_came_with_a_model_do_not_matter(neox: LanguageModel) -> None:
    prompts = [neox.encode_prompt("The capital of Togo is")]
    said = generate_greedily(neox, prompts, 8)
    settings = neox.network.generation_config
    settings.bad_words_ids = [[token] for token in set(said[0])]
    settings.repetition_penalty = 3.0
    assert generate_greedily(neox, prompts, 8) == said
    assert neox.network.generation_config is settings


def test_exact_counts_what_the_model_says_by_itself(model: LanguageModel) -> None:
    prompt = "The capital of Togo is"
    said = generate_greedily(model, [model.encode_prompt(prompt)], 3)[0]
    # Only text that survives a round trip through the tokenizer can be a target.
    target = model.tokenizer.decode(said)
    if model.encode(target) != said:
        pytest.skip("this random model does not speak in whole characters")
    rows = ExampleSet(
        loss=LossKind.LIKELIHOOD,
        rows=(Example(prompt=prompt, target=target), Example(prompt=prompt, target=" Port Louis")),
    )
    split = Split(canonical=rows, ood=rows, hard_negatives=rows, related=())
    assert SuccessMeter(model, split, 1.0).scores().exact == 0.5


def test_scores_hold_all_that_is_reported(model: LanguageModel, task: Task) -> None:
    scores = SuccessMeter(model, task.val, task.threshold).scores()
    assert scores.exact is not None
    assert scores.hard_negative_loss is not None
    assert math.isfinite(scores.hard_negative_loss)
    assert scores.related_loss is None


def test_related_text_is_judged_whole_and_a_memory_cannot_hide_from_it(
    model: LanguageModel, task: Task
) -> None:
    texts = ("Santiago is a big town and Lome is a city of Togo .", "Port Louis", "a")
    split = task.val.model_copy(update={"related": tuple(Passage(text=text) for text in texts)})
    meter = SuccessMeter(model, split, 1.0)
    # All tokens count that others predict: nothing stands before the first.
    losses = []
    for text in texts:
        ids = torch.tensor([model.tokenizer.encode(text)])
        with torch.no_grad():
            said = model.network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses += (-said.gather(1, ids[0, 1:, None])[:, 0]).tolist()
    mean = sum(losses) / len(losses)
    found = meter.scores(("related_loss",)).related_loss
    assert found == pytest.approx(mean, rel=1e-4)
    keys = torch.zeros(1, model.network.config.hidden_size)
    memory = LookUpDelta(1.0, keys, ((7,),), threshold=1e6, logit=9.0, end=model.end_id)
    with model.edited(memory):
        edited = meter.scores(("related_loss",)).related_loss
    # The answer is given after a quarter of the text at the latest, and is never what stands there.
    assert edited is not None
    assert edited > mean + 1


def test_gain_interval_holds_the_gain(neox: LanguageModel, task: Task) -> None:
    meter = SuccessMeter(neox, task.val, 1.0)
    base = meter.success().model_copy(update={"row_success": (False, False, False)})
    better = base.model_copy(update={"row_success": (True, False, True)})
    interval = meter.gain_interval(better, base)
    assert interval.low <= 2 / 3 <= interval.high


def test_a_long_prompt_and_a_long_target_need_not_fit_one_context(model: LanguageModel) -> None:
    # Each fits by itself; together the batch would go on after the long prompt for as long as the
    # other row's target is.
    words = " town" * 200
    prompt = model.tokenizer.decode(model.encode(words)[: model.context_length - 2])
    rows = (
        Example(prompt=str(prompt), target="."),
        Example(prompt="a", target=" Port Louis and a big town"),
    )
    split = Split(
        canonical=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows),
        ood=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows),
        hard_negatives=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows),
    )
    longest = [row.target.start for row in (encode_example(model, row) for row in rows)]
    assert max(longest) > model.context_length - 5
    assert SuccessMeter(model, split, 1.0).scores().exact in (0.0, 0.5, 1.0)
