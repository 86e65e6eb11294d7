"""Training rows: edits, prefixed copies and facts to preserve."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from pydantic import Field

from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.likelihood import Continuation, EncodedExample, encode_examples
from tuner.editing.model import LanguageModel
from tuner.editing.sampling import prepend, sample_prefixes
from tuner.editing.task import Example, ExampleSet, LossKind, Task
from tuner.editing.tfidf import nearest_texts
from tuner.errors import ConfigError, EditError, TaskError
from tuner.files.cache import Cache


@final
@dataclass(frozen=True)
class TrainingRow:
    """What one row of a batch teaches: by default its target, given its prompt."""

    example: Example
    encoded: EncodedExample
    loss: LossKind

    def followed_by(self, text: str, model: LanguageModel) -> "TrainingRow":
        """Return the row with a text learned behind its target.

        Raises:
            EditError: the row would exceed the model's context.
        """
        pieces = (self.example.prompt, self.example.target, text)
        (ids,) = (joined.ids for joined in model.read([pieces]))
        return self._longer(ids, model)

    def ended(self, model: LanguageModel) -> "TrainingRow":
        """Return the row with the end of the text learned behind its target.

        Raises:
            EditError: the row would exceed the model's context.
        """
        return self._longer((*self.encoded.target.ids, model.end_id), model)

    def _longer(self, ids: tuple[int, ...], model: LanguageModel) -> "TrainingRow":
        if len(ids) > model.context_length:
            raise EditError(
                f"With what is learned behind its target, a row of {len(ids)} tokens exceeds "
                f"the model's context of {model.context_length}."
            )
        target = Continuation(ids, start=self.encoded.target.start)
        return replace(self, encoded=replace(self.encoded, target=target))

    def from_the_start(self) -> "TrainingRow":
        """Return the row with its prompt learned too; only a first token has no predecessor."""
        target, contrast = self.encoded.target, self.encoded.contrast
        whole = EncodedExample(
            target=replace(target, start=1),
            contrast=None if contrast is None else replace(contrast, start=1),
        )
        return replace(self, encoded=whole)


class RowsEditor(Editor):
    """An editor that learns rows: the examples, prefixed copies and facts to preserve.

    Sources: Gangadhar and Stratos 2024 (arXiv:2402.11078) for prefixes and facts, whose loss is
    that of the target given its prompt; their target's end is not learned. A fact after the target
    follows SAUL (arXiv:2410.02433). Verified of SAUL, from a review and not from the paper: a
    random true sentence follows the target, all of it is learned, and the facts are rows too (our
    `facts`). Ours, since no code is public and the paper was not at hand: the full stop between
    target and sentence, that only edits and their prefixed copies are followed by one, and the
    settings around it.
    """

    prefixes: int = Field(
        default=0,
        ge=0,
        le=200,
        description="Copies of each example behind a prefix that the unedited model wrote "
        "(pseudo-paraphrases).",
    )
    facts: int = Field(
        default=0,
        ge=0,
        le=200,
        description="True facts per example, learned with their own targets so that they stay.",
    )
    nearest_facts: bool = Field(
        default=False,
        description="Take the facts whose words are nearest to each example's, not random ones.",
    )
    fact_after_target: bool = Field(
        default=False,
        description="Learn a true fact behind each target too, drawn afresh in every epoch "
        "(SAUL); for the likelihood loss.",
    )
    end_of_text: bool = Field(
        default=False,
        description="Learn that the text ends behind the target, where the loss is likelihood.",
    )
    whole_text: bool = Field(
        default=False,
        description="Learn the prompt as well as the target (naive fine-tuning, to compare with).",
    )

    def check_task(self, task: Task) -> None:
        """Verify that a task has the facts that are asked for, and the loss that fits them.

        Raises:
            ConfigError: it has not.
        """
        wanted = "facts" if self.facts else "fact_after_target" if self.fact_after_target else None
        if wanted and not (task.val.facts and task.test.facts):
            raise ConfigError(
                f"`{wanted}` needs true facts that should stay as they are, and the task "
                f"{task.name!r} has none. Give it a facts.jsonl in val/ and test/, or leave "
                f"`{wanted}` at its default."
            )
        if self.fact_after_target:
            _check_likelihood(task.loss)

    def rows_by_epoch(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[list[TrainingRow]]:
        """Yield the rows of each epoch in turn, without end: examples, prefixed ones, facts.

        Raises:
            ConfigError: facts are asked for and there are none, or the loss does not fit.
            TaskError: an example or fact has no target token or exceeds the model's context.
            EditError: a row exceeds the model's context by what these settings add to it.
        """
        edits = self._rows_of(model, examples.loss, examples.rows)
        edits += self._prefixed(model, examples, aux, seed)
        kept = self._rows_of(model, LossKind.LIKELIHOOD, self._kept(model, examples, aux, seed))
        if not self.fact_after_target:
            rows = [self._ended(row, model) for row in (*edits, *kept)]
            while True:
                yield rows
        _check_likelihood(examples.loss)
        facts = facts_to_keep(aux, examples, wanted_by="fact_after_target")
        random = generator_for("fact after target", seed)
        while True:
            drawn = torch.randint(len(facts), (len(edits),), generator=random).tolist()
            followed = [
                row.followed_by(sentence_after(row.example, facts[place]), model)
                for row, place in zip(edits, drawn, strict=True)
            ]
            yield [self._ended(row, model) for row in (*followed, *kept)]

    def _prefixed(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, seed: int
    ) -> list[TrainingRow]:
        # In a chain of batches the unedited model is the one before all of them.
        writer = aux.origin or model
        copies = prefixed_examples(writer, examples.rows, self.prefixes, seed=seed, cache=aux.cache)
        try:
            return self._rows_of(model, examples.loss, copies)
        except TaskError as error:
            raise EditError(f"No room for `prefixes`: {error}") from None

    def _kept(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, seed: int
    ) -> tuple[Example, ...]:
        if not self.facts:
            return ()
        facts = facts_to_keep(aux, examples, wanted_by="facts")
        if self.nearest_facts:
            return nearest_facts(model, examples.rows, facts, self.facts)
        return random_facts(facts, self.facts * len(examples), seed=seed)

    def _rows_of(
        self, model: LanguageModel, loss: LossKind, examples: Sequence[Example]
    ) -> list[TrainingRow]:
        encoded = encode_examples(model, examples)
        rows = [TrainingRow(*row, loss) for row in zip(examples, encoded, strict=True)]
        return [row.from_the_start() for row in rows] if self.whole_text else rows

    def _ended(self, row: TrainingRow, model: LanguageModel) -> TrainingRow:
        if self.end_of_text and row.loss is LossKind.LIKELIHOOD:
            return row.ended(model)
        return row


def _check_likelihood(loss: LossKind) -> None:
    if loss is not LossKind.LIKELIHOOD:
        raise ConfigError(
            f"`fact_after_target` is for the loss likelihood, but this task's is {loss}: what "
            "follows an unwanted target is not to be learned."
        )


def prefixed_examples(
    model: LanguageModel,
    rows: Sequence[Example],
    count: int,
    *,
    seed: int,
    cache: Cache | None,
) -> tuple[Example, ...]:
    """Return every example behind each of `count` prefixes that the model itself wrote.

    They stand for paraphrases: the prompt and target stay, the context changes. The same prefixes
    serve all examples; the first five are 4 tokens long, the others 9.

    Source: Gangadhar and Stratos 2024 (arXiv:2402.11078) and their code.
    """
    if count == 0:
        return ()
    lengths = [4 if number < 5 else 9 for number in range(count)]
    prefixes = sample_prefixes(
        model, [""] * count, new_tokens=lengths, top_k=5, seed=seed, cache=cache
    )
    return tuple(
        row.model_copy(update={"prompt": prepend(model, prefix, row.prompt)})
        for row in rows
        for prefix in prefixes
    )


def facts_to_keep(aux: Auxiliary, examples: ExampleSet, *, wanted_by: str) -> tuple[Example, ...]:
    """Return the true facts whose prompts no edit has, neither of this batch nor of earlier ones.

    Raises:
        ConfigError: no facts are given, or none is left.
    """
    if aux.facts is None:
        raise ConfigError(
            f"`{wanted_by}` needs true facts that should stay as they are, and none are given. "
            f"Give some as Auxiliary(facts=...), or leave `{wanted_by}` at its default."
        )
    edited = {row.prompt for row in examples.rows}
    kept = tuple(
        row for row in aux.facts.rows if row.prompt not in edited and row.prompt not in aux.earlier
    )
    if not kept:
        raise ConfigError(
            f"`{wanted_by}` needs true facts, but each of the {len(aux.facts)} given has the "
            "prompt of an edit."
        )
    return kept


def random_facts(facts: Sequence[Example], count: int, *, seed: int) -> tuple[Example, ...]:
    """Return `count` facts; none comes again before all have come."""
    random = generator_for("facts", seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(facts), generator=random).tolist()
    return tuple(facts[place] for place in order[:count])


def nearest_facts(
    model: LanguageModel, examples: Sequence[Example], facts: Sequence[Example], count: int
) -> tuple[Example, ...]:
    """Return for each example the `count` facts whose prompts share most words with its prompt.

    Two examples may bring the same fact, as in the published data. Source: Gangadhar and Stratos
    2024 (arXiv:2402.11078), whose nearness is that of Sentence-BERT's vectors; see
    `nearest_texts` for ours, which needs no further model.
    """
    nearest = nearest_texts(
        model, [row.prompt for row in examples], [row.prompt for row in facts], count
    )
    return tuple(facts[place] for places in nearest for place in places)


def sentence_after(example: Example, fact: Example) -> str:
    """Return a fact as a sentence of its own that may follow the example's target."""
    joint = " " if _ends_a_sentence(example.target) else ". "
    sentence = f"{joint}{fact.prompt}{fact.target}"
    return sentence if _ends_a_sentence(sentence) else f"{sentence}."


def _ends_a_sentence(text: str) -> bool:
    return text.rstrip().endswith((".", "!", "?"))


def generator_for(purpose: str, seed: int) -> torch.Generator:
    """Return random numbers of their own for one purpose, so that no other's are shifted."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
