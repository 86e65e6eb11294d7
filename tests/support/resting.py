"""An editor that rests before it edits, so that a search lasts long and costs almost nothing."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

from pydantic import Field

from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet
from tuner.editors.lora import Lora

RELEASED = 10**6
"""So many strikes mean that no more will come."""

_MOST_STRIKES = 2
_LONGEST_REST_S = 3.0


@final
class Resting(Editor):
    """Waits for a few strikes and rests a little, both drawn from the seed, then trains a LoRA.

    The file `strikes` grows by a byte with each strike, so a search lasts for as many as it has
    trials, however busy the machine is. A line in the file `log` says that a trial was run.
    """

    learning_rate: float = Field(gt=0)
    strikes: str
    log: str

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the LoRA's change."""
        draw, strikes = random.Random(seed), Path(self.strikes)
        awaited = strikes.stat().st_size + draw.randint(1, _MOST_STRIKES)
        while strikes.stat().st_size < min(awaited, RELEASED):
            time.sleep(0.1)
        time.sleep(draw.uniform(0, _LONGEST_REST_S))
        lora = Lora(rank=2, width=0.9, epochs=1, batch_size=2, learning_rate=self.learning_rate)
        yield from lora.steps(model, examples, aux, seed=seed)
        with Path(self.log).open("a", encoding="utf-8") as log:
            log.write(f"{seed}\n")
