"""Which published records become a task: conflicts removed, splits without a common subject."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.task import Example, ExampleSet, GenerationPrompt, LossKind, Split
from tuner.errors import ConfigError

_DEFAULT_SIZE = 1000
_DEFAULT_SHARE = 0.4
_FACTS_PER_EDIT = 20


@final
class FactSelection(BaseModel):
    """How many records each part of a task gets, and which."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    val: int | None = Field(default=None, ge=1, description="Edits of the validation split.")
    test: int | None = Field(default=None, ge=1, description="Edits of the test split.")
    facts: int | None = Field(default=None, ge=0, description="True facts of each split.")
    seed: int = Field(default=0, ge=0, description="Seed of the choice.")


@final
@dataclass(frozen=True)
class FactRecord:
    """What a published record says about one fact.

    Attributes:
        relation: With the subject what makes two edits be about the same fact.
        fact: The same prompt with the true object, for the pool of facts.
    """

    subject: str
    relation: str
    edit: Example
    paraphrases: tuple[Example, ...]
    neighbours: tuple[Example, ...]
    generations: tuple[GenerationPrompt, ...]
    fact: Example


@final
@dataclass(frozen=True)
class Chosen:
    """Two splits, what was left out on the way, as reasons with counts, and all that in words."""

    val: Split
    test: Split
    left_out: Mapping[str, int]
    description: str


def choose(
    records: Iterable[FactRecord], selection: FactSelection, skipped: Mapping[str, int]
) -> Chosen:
    """Return splits that share no subject, and a pool of facts that neither of them judges.

    Of edits that give the same subject and relation different objects, none can be told to be
    the right one: all but the first are removed, and so are repetitions, as MEMIT's evaluation
    needs it (Meng et al. 2023, arXiv:2210.07229). `skipped` counts what reading left out.

    Raises:
        ConfigError: there are fewer usable records than the splits need.
    """
    left_out: Counter[str] = Counter()
    usable = _without_conflicts(records, left_out)
    # Only now: the records may be read as they are asked for.
    left_out.update(skipped)
    share = int(_DEFAULT_SHARE * len(usable))
    val_size = selection.val or min(_DEFAULT_SIZE, share)
    test_size = selection.test or min(_DEFAULT_SIZE, share)
    by_subject: defaultdict[str, list[FactRecord]] = defaultdict(list)
    for record in usable:
        by_subject[record.subject].append(record)
    subjects = sorted(by_subject)
    random.Random(f"subjects {selection.seed}").shuffle(subjects)
    waiting = iter(subjects)
    halves: list[list[FactRecord]] = []
    asked: set[tuple[str, str]] = set()  # by the splits before
    for size in (val_size, test_size):
        half: list[FactRecord] = []
        while len(half) < size and (subject := next(waiting, None)) is not None:
            for record in by_subject[subject]:
                if asked.isdisjoint(_asked(record)):
                    half.append(record)
                else:
                    left_out["asked the same as one of another split"] += 1
        # The last subject may have more records than there is room for; they are in no split.
        halves.append(half[:size])
        asked.update(row for record in halves[-1] for row in _asked(record))
    val, test = halves
    if not val or not test or len(val) < val_size or len(test) < test_size:
        raise ConfigError(
            f"{val_size} edits for validation and {test_size} for test need records of different "
            f"subjects, but there are {len(usable)} usable records of {len(subjects)} subjects"
            f"{_reasons(left_out)}. Lower --val or --test, or give a longer file."
        )
    rest = [by_subject[subject][0] for subject in waiting]
    count = selection.facts
    if count is None:
        count = _FACTS_PER_EDIT * max(len(val), len(test))
    facts = _unjudged(rest, (*val, *test))[:count]
    return Chosen(
        _split(val, facts),
        _split(test, facts),
        left_out,
        f"Chosen with seed {selection.seed} from {len(usable) + left_out.total()} records: "
        f"{len(val)} edits for validation, {len(test)} for test, no subject in both, and "
        f"{len(facts)} facts about further subjects{_reasons(left_out)}.",
    )


def _asked(record: FactRecord) -> set[tuple[str, str]]:
    return {(row.prompt, row.target) for row in (record.edit, *record.paraphrases)}


def _reasons(left_out: Mapping[str, int]) -> str:
    return "".join(f"; {count} {reason}" for reason, count in left_out.items())


def _without_conflicts(records: Iterable[FactRecord], left_out: Counter[str]) -> list[FactRecord]:
    first: dict[tuple[str, str], FactRecord] = {}
    for record in records:
        key = (record.subject, record.relation)
        if key not in first:
            first[key] = record
        elif first[key].edit.target == record.edit.target:
            left_out["repeated an earlier edit"] += 1
        else:
            left_out["conflicted with an earlier edit"] += 1
    return list(first.values())


def _unjudged(records: Sequence[FactRecord], judged: Iterable[FactRecord]) -> list[Example]:
    """Return the facts of records that no judged row asks for or states, in whatever words."""
    prompts: set[str] = set()
    by_object: defaultdict[str, set[str]] = defaultdict(set)
    for record in judged:
        for row in (record.edit, *record.paraphrases, *record.neighbours):
            prompts.add(row.prompt)
            for target in (row.target, row.contrast):
                if target is not None:
                    by_object[target].add(row.prompt)
    return [
        record.fact
        for record in records
        if record.fact.prompt not in prompts
        and not any(record.subject in prompt for prompt in by_object[record.fact.target])
    ]


def _split(records: Sequence[FactRecord], facts: Sequence[Example]) -> Split:
    def examples(rows: Iterable[Example]) -> ExampleSet:
        return ExampleSet(loss=LossKind.LIKELIHOOD, rows=tuple(rows))

    return Split(
        canonical=examples(record.edit for record in records),
        ood=examples(row for record in records for row in record.paraphrases),
        hard_negatives=examples(()),
        neighbours=tuple(row for record in records for row in record.neighbours),
        generations=tuple(row for record in records for row in record.generations),
        facts=tuple(facts),
    )


def with_subject(prompt: str, subject: str) -> str | None:
    """Return the subject if the prompt has it, as rows need it, else None."""
    return subject if subject in prompt else None


def as_target(text: str) -> str:
    """Return an object as a continuation: with one leading space."""
    return f" {text.strip()}"
