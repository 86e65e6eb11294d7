"""The interface of every editing method."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from pydantic import BaseModel, ConfigDict

from tuner.editing.corpus import Corpus
from tuner.editing.delta import Delta
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet


@final
@dataclass(frozen=True)
class Auxiliary:
    """What some methods need beyond the examples."""

    general: Corpus
    """General text that neither the search nor the certificates read."""


@final
@dataclass(frozen=True)
class Step:
    """The edit as it stands after one epoch; one-shot methods yield one step."""

    delta: Delta
    training_loss: float | None = None


class Editor(BaseModel, ABC):
    """A method that turns canonical examples into a delta. Its fields are its hyperparameters.

    A subclass is final, lives in a file of its own under `tuner/editors/`, and is known by that
    file's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def name(cls) -> str:
        """Return the name of the method: that of its file, or `module:Class` for outsiders."""
        package, _, module = cls.__module__.rpartition(".")
        return module if package == "tuner.editors" else f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def edit(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[Step]:
        """Yield the edit after each epoch, for as long as the consumer asks.

        Implementations never change `model`, nor any global random state: the same seed gives
        the same deltas whatever ran before.

        Raises:
            EditError: the edit diverged or ran out of memory.
        """
        ...
