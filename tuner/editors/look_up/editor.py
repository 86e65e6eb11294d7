"""Look-up: stores prompts with their targets and says those again near them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, final

import torch
from pydantic import Field

from tuner.deltas.memory.memory import CarriedMemory
from tuner.editing.editor import Auxiliary, Editor, EpochEdit
from tuner.editing.likelihood import encode_continuations
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts
from tuner.editing.task import ExampleSet, LossKind
from tuner.editors.look_up.memory import LookUpDelta, mean_states
from tuner.errors import EditError


@final
class LookUp(Editor):
    """Stores each prompt's mean last state with its target; nothing is trained.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4, "LU", and its thresholds per task.
    """

    smoke_settings: ClassVar[Mapping[str, object]] = {"threshold": 0.01}
    deterministic: ClassVar[bool] = True

    threshold: float = Field(
        default=3.0, gt=0, description="Distance up to which a prompt gets the stored target."
    )
    logit: float = Field(
        default=10.0, gt=0, description="Logit of the stored token, where all others have 0."
    )

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return none: it changes no weights."""
        return ()

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the cache, once.

        Raises:
            EditError: the examples say what should not be said, or only in comparison.
        """
        if examples.loss not in (LossKind.LIKELIHOOD, LossKind.PREFER):
            raise EditError(
                f"A look-up cache says targets; the loss {examples.loss} asks for more."
            )
        rows = encode_continuations(model, [(row.prompt, row.target) for row in examples.rows])
        prompts = Prompts.of([row.ids[: row.start] for row in rows], model.device)
        memory = LookUpDelta(
            strength=1.0,
            keys=mean_states(model.network, prompts),
            targets=tuple(row.ids[row.start :] for row in rows),
            threshold=self.threshold,
            logit=self.logit,
            end=model.end_id,
        )
        match aux.carried:
            case CarriedMemory(LookUpDelta() as earlier):
                memory = replace(
                    earlier,
                    keys=torch.cat([earlier.keys, memory.keys]),
                    targets=(*earlier.targets, *memory.targets),
                )
        yield EpochEdit(memory, carried=CarriedMemory(memory))
