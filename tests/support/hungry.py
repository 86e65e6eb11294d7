"""An editor that, in some trials, asks for more memory than there is."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import psutil
import torch
from pydantic import Field

from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors.lora import Lora

REFUSED, KILLED = 1, 2
"""The trials whose memory the system refuses, and whose worker it kills."""

_SPARE_BYTES = 2**28
_BITE = 2**26
"""Elements of four bytes."""


@final
class Hungry(Editor):
    """Trains a LoRA, except in two trials, which it knows by their seeds."""

    learning_rate: float = Field(gt=0)

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the LoRA's change, unless memory runs out before."""
        if seed == REFUSED:
            with _limited_address_space():
                _eat()
        if seed == KILLED:
            _eat()
        lora = Lora(rank=2, width=0.9, epochs=1, batch_size=2, learning_rate=self.learning_rate)
        yield from lora.steps(model, examples, aux, seed=seed)


def _eat() -> None:
    eaten = []
    while True:
        eaten.append(torch.ones(_BITE))


@contextmanager
def _limited_address_space() -> Iterator[None]:
    """Let the system give this process little more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
