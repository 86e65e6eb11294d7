"""The interface of every editing method."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import final

from pydantic import BaseModel, ConfigDict, Field

from tuner.cache import Cache
from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.delta import AdditiveDelta, Delta, WeightDelta, check_finite
from tuner.editing.model import LanguageModel
from tuner.editing.postprocess import keep_largest, truncate_rank
from tuner.editing.task import ExampleSet, Split, Task
from tuner.errors import EditError


@final
@dataclass(frozen=True)
class Auxiliary:
    """What some methods need beyond the examples."""

    general: Corpus
    """General text that neither the search nor the certificates read."""
    facts: ExampleSet | None = None
    """True facts that should stay as they are; no row of them is judged."""
    training: Split | None = None
    """Other edits with rows in and out of their scope, which learned editors train on."""
    cache: Cache | None = None
    """Where statistics and target vectors are kept; without one they are made anew."""
    earlier: tuple[ExampleSet, ...] = ()
    """What has been edited into the model before, batch by batch."""
    origin: LanguageModel | None = None
    """The model before any batch, where it is not the one that is edited."""
    companions: Companions = field(default_factory=Companions)
    """The small models beside the one that is edited, which outlive a trial."""


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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batches: int = Field(
        default=1,
        ge=1,
        description="Edit in this many batches, at most one per example, each on the model that "
        "the ones before it left.",
    )
    keep_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of each weight change that is kept, the largest relative to the "
        "weights (RECT).",
    )
    truncated_rank: int | None = Field(
        default=None, ge=1, description="Rank to which each weight change is cut; default none."
    )

    @classmethod
    def name(cls) -> str:
        """Return the name of the method: that of its file, or `module:Class` for outsiders."""
        package, _, module = cls.__module__.rpartition(".")
        return module if package == "tuner.editors" else f"{cls.__module__}:{cls.__qualname__}"

    def check_task(self, task: Task) -> None:
        """Verify that a task has all that this method needs of it, before anything is run.

        Raises:
            ConfigError: it has not.
        """

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that this method can edit a model, before anything is run.

        A model that it needs beside this one is loaded through `companions`.

        Raises:
            ConfigError: it cannot.
        """

    @property
    def step_count(self) -> int:
        """How many steps `edit` yields unless it ends early."""
        return self.batches if self.batches > 1 else self.steps_per_batch

    @property
    def steps_per_batch(self) -> int:
        """How many steps the method itself takes; one-shot methods take one."""
        return 1

    def edit(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[Step]:
        """Yield the edit after each epoch, for as long as the consumer asks.

        With several `batches`, yield the sum of all batches so far after each batch.

        Raises:
            EditError: the edit diverged or ran out of memory.
        """
        if self.batches == 1:
            for step in self.steps(model, examples, aux, seed=seed):
                yield self._processed(model, step)
        else:
            yield from self._chain(model, examples, aux, seed)

    @abstractmethod
    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[Step]:
        """Yield the method's own edit of one batch after each epoch.

        Implementations never change `model`, nor any global random state: the same seed gives
        the same deltas whatever ran before.

        Raises:
            EditError: the edit diverged or ran out of memory.
        """
        ...

    def _processed(self, model: LanguageModel, step: Step) -> Step:
        delta = step.delta
        check_finite(delta)
        if self.keep_share == 1 and self.truncated_rank is None:
            return step
        if not isinstance(delta, WeightDelta):
            raise EditError(
                f"Only changes of weights have a share or a rank to keep; {self.name()} "
                "changes none. Leave keep_share and truncated_rank at their defaults."
            )
        if self.truncated_rank is not None:
            delta = truncate_rank(delta, model.network, self.truncated_rank)
        if self.keep_share < 1:
            delta = keep_largest(delta, model.network, self.keep_share)
        return replace(step, delta=delta)

    def _chain(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, seed: int
    ) -> Iterator[Step]:
        count = min(self.batches, len(examples))
        ends = [number * len(examples) // count for number in range(count + 1)]
        parts = [examples.rows[start:end] for start, end in itertools.pairwise(ends)]
        total: AdditiveDelta | None = None
        current = model
        earlier: list[ExampleSet] = []
        for number, rows in enumerate(parts):
            batch = examples.model_copy(update={"rows": rows})
            now = replace(aux, earlier=tuple(earlier), origin=model)
            # Only the last step is held: a step may be as large as the model.
            last: Step | None = None
            for step in self.steps(current, batch, now, seed=seed + number):
                last = step
            if last is None:
                raise EditError(f"{self.name()} gave no edit for batch {number + 1}.")
            step = self._processed(current, last)
            if not isinstance(step.delta, AdditiveDelta):
                raise EditError(
                    f"The edits of {self.name()} cannot be added up batch by batch. Use batches: 1."
                )
            total = step.delta if total is None else total.plus(step.delta)
            yield replace(step, delta=total)
            earlier.append(batch)
            current = model.after(total)
