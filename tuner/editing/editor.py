"""The interface of every editing method."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.delta import AdditiveDelta, Delta, WeightDelta, check_finite
from tuner.editing.model import LanguageModel
from tuner.editing.postprocess import keep_largest, truncate_rank
from tuner.editing.task import ExampleSet, Split, Task
from tuner.errors import EditError
from tuner.files.cache import Cache

_EDITORS = "tuner.editors."


@dataclass(frozen=True)
class Carried:
    """What an editor carries from one batch of a sequence to the next, beside the edited model.

    A subclass holds what one kind of editor needs, of a size that does not grow with the number
    of batches wherever the method allows it.
    """


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
    earlier: Set[str] = frozenset()
    """The prompts of the edits that earlier batches of a sequence made."""
    origin: LanguageModel | None = None
    """The model before the first batch of a sequence; None outside of sequences."""
    carried: Carried | None = None
    """What the batch before this one left to it."""
    companions: Companions = field(default_factory=Companions)
    """The small models beside the one that is edited, which outlive a trial."""


@final
@dataclass(frozen=True)
class EpochEdit:
    """The edit as it stands after one epoch; one-shot methods yield one step."""

    delta: Delta
    training_loss: float | None = None
    carried: Carried | None = None
    """What the next batch of a sequence needs of this one. An edit that cannot be added to others
    must say it; its delta then holds the edits of all batches so far."""


class Editor(BaseModel, ABC):
    """A method that turns canonical examples into a delta. Its fields are its hyperparameters.

    A subclass is final, lives in a file `NAME.py` or `NAME/editor.py` under `tuner/editors/`, and
    is known by that name. Outsiders' editors live anywhere importable.

    Call order: `check_task` and then `check_model`, once each before anything is run; then `edit`,
    any number of times, on one model or on several, each call with a seed. `edit` is shared by all
    editors and calls `steps`, which is the method itself; with several batches it calls `steps` for
    each, and `carry` between two.

    Grad mode: steps are asked for under `torch.no_grad()` as well as outside of it, and between
    two steps the consumer may apply the delta to the model and generate with it. An editor that
    needs gradients turns them on itself, with `torch.enable_grad()` around each backward pass, and
    trains a `model.twin(...)`, never the model.

    What may be kept between calls: nothing on the editor, which is frozen. Statistics that trials
    share go into `aux.cache`, under keys of all that they depend on; models beside the edited one
    into `aux.companions`; what later batches of a sequence need into `EpochEdit.carried`.

    Subclass `tuner.testing.EditorContract` to test all of this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    smoke_settings: ClassVar[Mapping[str, object]] = {}
    """Small settings with which the contract tests run the method on tiny random models.

    A field that names a model is given the family of a tiny one: `{"classifier": "gpt_neox"}`."""
    deterministic: ClassVar[bool] = False
    """Whether the seed has no part in the edit, so that every seed gives the same bits."""
    works_on_random_models: ClassVar[bool] = True
    """Whether an edit lowers the loss of its examples even in a model that was never trained."""

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
        """Return the method's name: that of its file or folder, or `module:Class` for outsiders."""
        if cls.__module__.startswith(_EDITORS):
            return cls.__module__.removeprefix(_EDITORS).removesuffix(".editor")
        return f"{cls.__module__}:{cls.__qualname__}"

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

    @classmethod
    def weights_of(cls, model: LanguageModel) -> Collection[str]:
        """Return the weights that it may change, whatever its hyperparameters.

        Their mean gradient is what `tuner prepare` takes. By default they are those of all linear
        maps within the layers; a method that changes no weights has none.
        """
        return model.architecture.linear_weights(model.network)

    @classmethod
    def prepare(cls, model: LanguageModel, aux: "Auxiliary") -> None:
        """Take what all edits of a model share and the cache keeps; by default nothing.

        Raises:
            EditError: the text is not enough for it.
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
    ) -> Iterator[EpochEdit]:
        """Yield the edit after each epoch, for as long as the consumer asks.

        With several `batches`, yield the sum of all batches so far after each batch.

        Raises:
            EditError: the edit diverged or ran out of memory.
        """
        if self.batches == 1:
            for step in self.steps(model, examples, aux, seed=seed):
                yield self.processed(model, step)
            return
        count = min(self.batches, len(examples))
        ends = [number * len(examples) // count for number in range(count + 1)]
        sequence = EditSequence(self, model, aux)
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            batch = examples.model_copy(update={"rows": examples.rows[start:end]})
            yield sequence.make(batch, seed=seed + number)

    @abstractmethod
    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        """Yield the method's own edit of one batch after each epoch.

        Implementations never change `model`, nor any global random state: the same seed gives
        the same deltas whatever ran before. They may be asked under `torch.no_grad()`.

        Raises:
            EditError: the edit diverged or ran out of memory.
        """
        ...

    def carry(
        self, model: LanguageModel, examples: ExampleSet, step: EpochEdit, aux: Auxiliary
    ) -> Carried | None:
        """Return what the next batch of a sequence needs of this one and of those before it.

        `model` is as this batch left it, and `aux` is what the batch was made with. By default
        it is what the step itself says.
        """
        return step.carried

    def processed(self, model: LanguageModel, step: EpochEdit) -> EpochEdit:
        """Return a step whose change is finite, and as small as the fields ask for.

        Raises:
            EditError: a number is NaN or infinite, or the step changes no weights that could
                become smaller.
        """
        check_finite(step.delta)
        if self.keep_share == 1 and self.truncated_rank is None:
            return step
        if not isinstance(step.delta, WeightDelta):
            raise EditError(
                f"Only changes of weights have a share or a rank to keep; {self.name()} "
                "changes none. Leave keep_share and truncated_rank at their defaults."
            )
        return replace(step, delta=self.reduced(model, step.delta))

    def reduced(self, model: LanguageModel, delta: WeightDelta) -> WeightDelta:
        """Return a change cut to `truncated_rank`, and then to `keep_share`."""
        if self.truncated_rank is not None:
            delta = truncate_rank(delta, model.network, self.truncated_rank)
        if self.keep_share < 1:
            delta = keep_largest(delta, model.network, self.keep_share)
        return delta


@final
class EditSequence:
    """Edits made batch after batch, each on what the ones before it left.

    A batch costs the same however many came before it: of earlier batches only their sum is kept,
    and what the editor carries along.
    """

    def __init__(self, editor: Editor, model: LanguageModel, aux: Auxiliary) -> None:
        self.delta: Delta | None = None
        """All edits so far as one change of the model that the sequence began with."""
        self._editor = editor
        self._base = model
        self._current = model
        self._aux = replace(aux, origin=model)
        self._prompts: set[str] = set()
        # What the last batch left is read from the model only when another one follows.
        self._unread: tuple[ExampleSet, EpochEdit, Auxiliary] | None = None

    def make(self, examples: ExampleSet, *, seed: int) -> EpochEdit:
        """Make a batch of edits; return the last step of it, with all edits so far as its delta.

        Raises:
            EditError: the edit diverged or ran out of memory, or the editor's edits can neither
                be added up nor carried on.
        """
        aux = replace(self._aux, earlier=self._prompts, carried=self._carried())
        # Only the last step is held: a step may be as large as the model.
        last: EpochEdit | None = None
        for step in self._editor.steps(self._current, examples, aux, seed=seed):
            last = step
        if last is None:
            raise EditError(f"{self._editor.name()} gave no edit for the batch.")
        own = self._editor.processed(self._current, last)
        self.delta = self._with(own)
        if isinstance(self.delta, AdditiveDelta):
            self._current = self._base.after(self.delta)
        self._unread = examples, own, aux
        self._prompts.update(row.prompt for row in examples.rows)
        return replace(own, delta=self.delta)

    def _carried(self) -> Carried | None:
        if self._unread is None:
            return None
        return self._editor.carry(self._current, *self._unread)

    def _with(self, own: EpochEdit) -> Delta:
        if isinstance(own.delta, AdditiveDelta):
            before = self.delta
            return before.plus(own.delta) if isinstance(before, AdditiveDelta) else own.delta
        if own.carried is None:
            raise EditError(
                f"The edits of {self._editor.name()} can neither be added up batch by batch nor "
                "carried on. Use batches: 1, and no stream."
            )
        return own.delta
