"""Prompts that no edit is about: what scopes should leave out."""

import itertools
from collections.abc import Iterator

import torch

from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors._training.rows import generator_for

# Text is judged as prompts of this many lengths that are continued: see memory_reading.
_LENGTHS = 7


def general_prompts(corpus: Corpus, count: int) -> list[list[int]]:
    """Return the beginnings of the first `count` blocks, long and short ones in turn."""
    length = corpus.blocks.shape[1]
    return [
        block[: max(1, length * (number % _LENGTHS + 1) // (_LENGTHS + 1))].tolist()
        for number, block in enumerate(corpus.blocks[:count])
    ]


def unrelated_prompts(
    model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
) -> Iterator[list[int]]:
    """Yield prompts as token ids, without end.

    Beginnings of general text and, where there are any, prompts that are near to edits come in
    turn: true facts, and the rows out of the scope of other edits. None is an edit's own prompt.
    """
    edited = {row.prompt for row in examples.rows} | aux.earlier
    near = [] if aux.facts is None else [row.prompt for row in aux.facts.rows]
    if aux.training is not None:
        near += [row.prompt for row in aux.training.hard_negatives.rows]
    others = [prompt for prompt in near if prompt not in edited]
    known = [ids for ids in model.encode_prompts(others) if len(ids) <= model.context_length]
    pools = [
        pool for pool in (general_prompts(aux.general, len(aux.general.blocks)), known) if pool
    ]
    random = generator_for("unrelated prompts", seed)
    for pool in itertools.cycle(pools):
        yield pool[int(torch.randint(len(pool), (1,), generator=random))]
