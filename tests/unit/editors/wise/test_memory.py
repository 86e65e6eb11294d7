"""Side memories change only what they may, merge as TIES says, and know their own prompts."""

import pytest
import torch
from torch import Tensor

from tuner.editing.companions import Companions, Surroundings
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.likelihood import encode_example, training_losses
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.editors.wise.editor import Wise
from tuner.editors.wise.memory import WiseDelta, output_difference
from tuner.editors.wise.ties import ties_merged
from tuner.errors import ConfigError, EditError


def _edited(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus, **settings: object
) -> WiseDelta:
    editor = Wise.model_validate({"most_steps": 5, "prefixes": 1, **settings})
    (step,) = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, WiseDelta)
    return step.delta


def _original(model: LanguageModel, memory: WiseDelta) -> Tensor:
    """The matrix that a memory stands beside, as inputs × outputs."""
    weight = model.network.get_parameter(f"{memory.module}.weight").detach()
    return weight if model.architecture.transposed else weight.T


def test_ties_is_as_by_hand() -> None:
    changes = torch.tensor(
        [
            [[4.0, -1.0, 3.0], [0.0, 2.0, 0.5]],
            [[2.0, -5.0, -4.0], [0.0, 0.0, 1.0]],
        ]
    )
    # All kept: signs of the sums are + − −, 0 + +; what agrees is averaged.
    expected = torch.tensor([[3.0, -3.0, -4.0], [0.0, 2.0, 0.75]])
    assert torch.equal(ties_merged(changes, 1.0), expected)
    # Of five and four non-zero entries the largest three and two: 4, 3, 2 and −5, −4.
    expected = torch.tensor([[4.0, -5.0, -4.0], [0.0, 2.0, 0.0]])
    assert torch.equal(ties_merged(changes, 0.5, "changed"), expected)
    # Of all six entries the largest three: the second loses its 1, the first its −1 and ½.
    expected = torch.tensor([[3.0, -5.0, -4.0], [0.0, 2.0, 0.0]])
    assert torch.equal(ties_merged(changes, 0.5, "all"), expected)


def test_ties_leaves_nothing_of_nothing() -> None:
    assert torch.equal(ties_merged(torch.zeros(2, 3, 4), 0.5), torch.zeros(3, 4))


def test_what_is_masked_stays_as_it_is_to_the_bit(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    settings = {"mode": "retrieve", "shards": 2, "mask_share": 0.2, "weight_decay": 1.0}
    memory = _edited(model, examples, corpus, **settings)
    first, second = (change != 0 for change in memory.changes)
    original = _original(model, memory)
    # What may change has decayed, so that all of it shows.
    assert float(first.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(second.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float((first & second).float().mean()) == pytest.approx(0.04, abs=0.02)
    side = original + memory.changes[0]
    assert torch.equal(side[~first], original[~first])


def test_no_entry_goes_further_than_the_clamp(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    settings = {"mode": "retrieve", "clamp": 0.01, "learning_rate": 10.0}
    memory = _edited(neox, examples, corpus, **settings)
    limit = 0.01 * float(_original(neox, memory).square().mean().sqrt())
    assert float(memory.changes.abs().max()) == pytest.approx(limit, rel=1e-5)


def test_merging_leaves_one_side_memory_and_retrieving_leaves_all(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    sides = _edited(neox, examples, corpus, mode="retrieve", shards=3)
    merged = _edited(neox, examples, corpus, mode="merge", shards=3, density=0.5)
    assert len(sides.changes) == len(sides.thresholds) == 3
    assert torch.equal(merged.changes, ties_merged(sides.changes, 0.5)[None])
    # More side memories than edits would have nothing to learn.
    assert len(_edited(neox, examples, corpus, mode="retrieve", shards=9).changes) == 3


def test_the_threshold_is_a_share_of_the_least_difference(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    memory = _edited(model, examples, corpus, act_ratio=0.5)
    prompts = Prompts.of([model.encode_prompt(row.prompt) for row in examples.rows], model.device)
    needed = memory.route(model.network, prompts).needed
    # The edit with the least difference is in scope at half of the strength.
    assert float(needed.max()) == pytest.approx(0.5, rel=1e-4)


def test_a_side_memory_counts_where_it_makes_the_most_of_its_threshold() -> None:
    memory = WiseDelta(
        strength=1.0,
        module="anywhere",
        changes=torch.stack([torch.diag(torch.tensor([3.0, 0.0])), torch.eye(2)]),
        thresholds=torch.tensor([6.0, 1.0]),
    )
    inputs = torch.tensor([[[4.0, 0.0]], [[0.0, 0.5]], [[0.0, 0.0]]])
    prompts = Prompts(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool))
    routes = memory.decide(torch.nn.Identity(), inputs, prompts)
    # Differences of 12 and 4 are 2 and 4 thresholds; 0 and ½ are 0 and ½.
    assert routes.entries.tolist()[:2] == [1, 1]
    assert routes.needed.tolist()[:2] == [0.25, 2.0]
    assert routes.inside(1.0).tolist() == [True, False, False]


def test_differences_are_means_over_prompts_and_the_most_in_long_ones() -> None:
    inputs = torch.zeros(2, 101, 1)
    inputs[:, 0] = 5.0
    inputs[0, 3:] = 100.0
    mask = torch.ones(2, 101, dtype=torch.bool)
    # The first prompt has two tokens, of which padding is none; the second is long.
    mask[0, 2:] = False
    found = output_difference(inputs, torch.tensor([[2.0]]), mask)
    assert found.tolist() == [5.0, 10.0]


def test_the_matrix_is_exchanged_as_a_whole_and_comes_back(
    model: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    """Whichever way a family stores its matrices, and with the bias that it has."""
    memory = _edited(model, examples, corpus)
    ids = torch.tensor([model.encode_prompt(examples.rows[0].prompt)])
    before = model.network(input_ids=ids).logits
    with torch.no_grad(), model.edited(memory):
        said = model.network(input_ids=ids, use_cache=False).logits
    assert torch.equal(model.network(input_ids=ids).logits, before)
    weight = model.network.get_parameter(f"{memory.module}.weight")
    change = memory.changes[0] if model.architecture.transposed else memory.changes[0].T
    other = model.twin(own=[f"{memory.module}.weight"])
    with torch.no_grad():
        other.get_parameter(f"{memory.module}.weight").copy_(weight + change)
        expected = other(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(said, expected, rtol=1e-3, atol=1e-3)


def test_the_margin_loss_makes_differences_inside_and_not_outside(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    def differences(memory: WiseDelta) -> tuple[float, float]:
        rows = [neox.encode_prompt(row.prompt) for row in examples.rows]
        inside = Prompts.of(rows, neox.device)
        outside = Prompts.of(corpus.blocks[:40, :8].tolist(), neox.device)
        found = [memory.route(neox.network, prompts).needed for prompts in (inside, outside)]
        least, usual = (float((memory.thresholds / needed).median()) for needed in found)
        return least, usual

    settings = {"most_steps": 60, "shards": 1, "mask_share": 1.0, "density": 1.0}
    settings |= {"batch_size": 3, "unrelated": 16, "learning_rate": 0.3}
    inside, outside = differences(_edited(neox, examples, corpus, **settings, difference=3.0))
    # Wanting next to no difference allows next to none outside.
    little, _ = differences(_edited(neox, examples, corpus, **settings, difference=1e-6))
    assert inside > 1.5 * little
    assert inside > 1.5 * outside


@pytest.mark.parametrize("loss", list(LossKind))
def test_every_loss_falls(neox: LanguageModel, corpus: Corpus, loss: LossKind) -> None:
    rows = (Example(prompt="The capital of Togo is", target=" Lome", contrast=" Santiago"),)
    examples = ExampleSet(loss=loss, rows=rows)
    memory = _edited(neox, examples, corpus, most_steps=20, learning_rate=0.3)
    encoded = [encode_example(neox, row) for row in rows]
    with torch.no_grad():
        before = training_losses(neox.network, loss, encoded, neox.end_id)
        with neox.edited(memory):
            after = training_losses(neox.network, loss, encoded, neox.end_id)
    assert float(after) < float(before)


def test_true_facts_and_rows_out_of_scope_are_among_the_other_prompts(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    from itertools import islice

    from tuner.editors._training.unrelated_prompts import unrelated_prompts

    fact = Example(prompt="a big city of Chile is", target=" Santiago")
    facts = ExampleSet(loss=LossKind.LIKELIHOOD, rows=(fact, examples.rows[0]))
    aux = Auxiliary(corpus, facts=facts)
    found = list(islice(unrelated_prompts(neox, examples, aux, seed=0), 40))
    assert found.count(neox.encode_prompt(fact.prompt)) == 20
    assert neox.encode_prompt(examples.rows[0].prompt) not in found
    again = list(islice(unrelated_prompts(neox, examples, aux, seed=0), 40))
    assert found == again


def test_an_edit_that_makes_no_difference_is_refused(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    with pytest.raises(EditError, match="makes no difference"):
        _edited(neox, examples, corpus, mask_share=1e-9)


def test_parts_that_do_not_fit_together_are_refused(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    memory = _edited(neox, examples, corpus)
    surroundings = Surroundings(Companions(), lambda: neox.tokenizer)
    with pytest.raises(ConfigError, match="one matrix and one threshold"):
        WiseDelta.restore(memory.state, {"changes": memory.changes}, surroundings)
