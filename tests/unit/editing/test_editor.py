"""Batch after batch: a chain of edits is one edit."""

from collections.abc import Iterator
from typing import final

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.delta import Dense, LowRank, Rows, WeightDelta
from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.errors import ConfigError

NAME = "gpt_neox.layers.0.mlp.dense_4h_to_h.weight"
SHAPE = torch.Size((32, 64))


@final
class Doubler(Editor):
    """Adds to one matrix what it holds, and remembers what it was given."""

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        weight = model.network.get_parameter(NAME).detach()
        CALLS.append((len(examples), len(aux.earlier), aux.origin, seed))
        yield EpochEdit(WeightDelta({NAME: Dense(weight.clone())}))


CALLS: list[tuple[int, int, LanguageModel | None, int]] = []


def test_each_batch_starts_from_what_the_ones_before_it_left(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    CALLS.clear()
    before = neox.network.get_parameter(NAME).detach().clone()
    editor = Doubler(batches=2)
    steps = list(editor.edit(neox, examples, Auxiliary(corpus), seed=5))
    assert len(steps) == editor.step_count == 2
    # Doubled once, and then what was doubled doubled again.
    for step, factor in zip(steps, (2, 4), strict=True):
        with neox.edited(step.delta):
            assert torch.allclose(neox.network.get_parameter(NAME), factor * before)
    assert [(1, 0, neox, 5), (2, 1, neox, 6)] == CALLS
    neox.check_unchanged()


def test_what_is_kept_of_each_batch_is_kept_of_the_chain(
    neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    *_, step = Doubler(batches=3, truncated_rank=2).edit(neox, examples, Auxiliary(corpus), seed=0)
    (change,) = step.delta.changes.values()
    assert isinstance(change, LowRank)
    assert change.left.shape[1] == 6


def test_changes_of_every_kind_add_up() -> None:
    random = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    low = LowRank(some(32, 2), some(2, 64))
    dense = Dense(some(32, 64))
    rows, other_rows = (Rows(torch.tensor(index), some(2, 64)) for index in ([1, 4], [4, 9]))
    for one, other in ((low, low), (low, dense), (dense, rows), (rows, other_rows)):
        total = WeightDelta({NAME: one}).plus(WeightDelta({NAME: other})).changes[NAME]
        expected = one.to_dense(SHAPE) + other.to_dense(SHAPE)
        assert torch.allclose(total.to_dense(SHAPE), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="cannot be added"):
        WeightDelta({NAME: low}).plus(WeightDelta({NAME: rows}))


@pytest.mark.parametrize(("batches", "sizes"), [(2, [15, 15]), (7, [4, 4, 4, 5, 4, 4, 5])])
def test_there_are_as_many_batches_as_asked_for(
    batches: int, sizes: list[int], neox: LanguageModel, examples: ExampleSet, corpus: Corpus
) -> None:
    CALLS.clear()
    many = examples.model_copy(update={"rows": examples.rows * 10})
    for _ in Doubler(batches=batches).edit(neox, many, Auxiliary(corpus), seed=0):
        pass
    assert [call[0] for call in CALLS] == sizes
