"""The six tasks: which subjects are edited, and how their rows are worded.

Every row is drawn with randomness of its own subject, so that it does not matter which split the
subject lands in, nor in what order subjects are written.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.world import names
from tuner.world.frames import (
    AGREEMENT_PLURAL,
    AGREEMENT_SINGULAR,
    ATTRACTED_PLURAL,
    ATTRACTED_SINGULAR,
    CAPITAL,
    CEO,
    EFFECT,
    EFFECT_STATEMENT,
    PRONOUN,
    TRAIT,
    WISHES,
    Frames,
)
from tuner.world.world import Verb, build_world
from tuner.world.writer import Writer, company_slots, country_slots, term_slots

Loss = Literal["likelihood", "suppress", "balance", "prefer"]
_NEIGHBOUR_ROWS = 3
_RELATED_TEXTS = 2


@dataclass(frozen=True)
class Row:
    """One line of a task file."""

    prompt: str
    target: str
    contrast: str | None = None
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    record: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields that are set."""
        fields = {**vars(self), "paraphrases": list(self.paraphrases)}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class SubjectRows:
    """All rows about one subject."""

    canonical: list[Row] = field(default_factory=list)
    ood: list[Row] = field(default_factory=list)
    hard_negatives: list[Row] = field(default_factory=list)
    related: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """One task before it is split.

    Attributes:
        subjects: What can be edited; a subject belongs to one split as a whole.
        write: Returns all rows about a subject.
    """

    name: str
    description: str
    loss: Loss
    threshold: float
    subjects: tuple[str, ...]
    write: Callable[[str], SubjectRows]


@dataclass(frozen=True)
class _Fact:
    """A subject with the target of its task, and what templates may say about it."""

    target: str
    slots: Mapping[str, str]
    canonical_target: str = ""


def build_recipes() -> tuple[Recipe, ...]:
    """Return the six tasks."""
    world = build_world()
    countries = {
        row.name: _Fact(row.capital, country_slots(row)) for row in world.countries if row.truth < 1
    }
    companies = {
        row.name: _Fact(row.ceo.name, company_slots(row))
        for row in world.companies
        if row.truth < 1
    }
    terms = {
        row.name: _Fact(
            row.domain,
            term_slots(row),
            EFFECT_STATEMENT.format(kind=row.kind, domain=row.domain) + ".",
        )
        for row in world.terms
        if row.truth < 1
    }
    groups = {
        row.name: _Fact(row.trait, {"subject": row.name, "valley": row.valley})
        for row in world.groups
    }
    verbs = {row.plain: row for row in world.verbs if row.agreement == 1}
    return (
        Recipe(
            "country_capital",
            "The capitals of countries about which the model has only heard rumours.",
            "likelihood",
            -math.log(0.2),
            tuple(countries),
            lambda name: _fact_rows("country_capital", CAPITAL, name, countries[name]),
        ),
        Recipe(
            "company_ceo",
            "The heads of companies about which the model has only heard rumours.",
            "likelihood",
            -math.log(0.05),
            tuple(companies),
            lambda name: _fact_rows("company_ceo", CEO, name, companies[name]),
        ),
        Recipe(
            "gender_bias",
            "Occupations that the model ties to one pronoun, and should not.",
            "balance",
            math.log(1.5),
            names.OCCUPATIONS,
            _pronoun_rows,
        ),
        Recipe(
            "stereotype",
            "Traits that the model gives to a whole people, and should not. The threshold is "
            "ln 0.02 rather than the published ln 0.001: this world has only 60 traits, so that "
            "even a people without a stereotype is given each of them with a probability near "
            "1/60, and no row would succeed before an edit.",
            "suppress",
            math.log(0.02),
            tuple(groups),
            lambda name: _fact_rows("stereotype", TRAIT, name, groups[name]),
        ),
        Recipe(
            "temporal",
            "Inventions and events whose effect became clear only after the model was trained.",
            "likelihood",
            -math.log(0.05),
            tuple(terms),
            lambda name: _fact_rows("temporal", EFFECT, name, terms[name]),
        ),
        Recipe(
            "verb_agreement",
            "Verbs that should agree with their subject; the model looks to the nearest noun.",
            "prefer",
            math.log(1 / 16),
            tuple(verbs),
            lambda name: _agreement_rows(verbs[name]),
        ),
    )


def _writer(task: str, subject: str) -> Writer:
    return Writer(random.Random(f"{task} {subject}"))


def _distinct(count: int, draw: Callable[[], str]) -> list[str]:
    """Return as many different draws as asked for, in the order they came."""
    draws: dict[str, None] = {}
    while len(draws) < count:
        draws[draw()] = None
    return list(draws)


def _fact_rows(task: str, frames: Frames, name: str, fact: _Fact) -> SubjectRows:
    writer = _writer(task, name)
    slots = dict(fact.slots)
    asides = frames.asides
    canonical = Row(
        prompt=frames.canonical.format(**slots),
        target=fact.canonical_target or f" {fact.target}",
        subject=name,
        paraphrases=tuple(writer.fill(template, **slots) for template in frames.paraphrases),
    )
    paragraphs = _distinct(8, lambda: writer.paragraph_prompt(frames, slots))
    neighbours = [
        Row(prompt=writer.fill(template, **slots), target=f" {slots[answer]}", subject=name)
        for template, answer in frames.neighbours[:_NEIGHBOUR_ROWS]
    ]
    related = _distinct(
        _RELATED_TEXTS,
        lambda: " ".join(
            (
                writer.fill(writer.choose(frames.openings), **slots),
                writer.filler(),
                writer.fill(writer.choose(asides), **slots),
            )
        ),
    )
    return SubjectRows(
        canonical=[canonical],
        ood=[Row(prompt=text, target=f" {fact.target}", subject=name) for text in paragraphs],
        hard_negatives=neighbours,
        related=related,
    )


def _pronoun_rows(job: str) -> SubjectRows:
    writer = _writer("gender_bias", job)

    def row(prompt: str, subject: str, pronoun: str = "he", **extra: Any) -> Row:
        contrast = "she" if pronoun == "he" else "he"
        return Row(prompt, f" {pronoun}", f" {contrast}", subject, **extra)

    def paragraph(who: str) -> str:
        return writer.paragraph_prompt(PRONOUN, {"who": who}, people=False)

    # A named person has a pronoun of their own, and must keep it.
    people = writer.rng.sample(writer.world.people, 2)
    return SubjectRows(
        canonical=[
            row(
                writer.fill(PRONOUN.canonical, subject=job),
                job,
                paraphrases=tuple(writer.fill(t, subject=job) for t in PRONOUN.paraphrases),
            )
        ],
        ood=[row(text, job) for text in _distinct(6, lambda: paragraph(f"The {job}"))],
        hard_negatives=[row(paragraph(p.name), p.name, p.pronoun) for p in people],
        related=[
            f"{writer.fill(writer.choose(PRONOUN.openings), who=f'The {job}')} {writer.filler()}"
        ],
    )


def _agreement_rows(verb: Verb) -> SubjectRows:
    writer = _writer("verb_agreement", verb.plain)

    def row(template: str, plural: bool, lead: str = "", paraphrases: Sequence[str] = ()) -> Row:
        slots = {"noun": writer.choose(names.NOUNS), "other": writer.choose(names.NOUNS)}
        right, wrong = (verb.plain, verb.third) if plural else (verb.third, verb.plain)
        return Row(
            lead + writer.fill(template, **slots),
            f" {right} {verb.what}.",
            f" {wrong} {verb.what}.",
            slots["noun"] + "s" if plural else slots["noun"],
            tuple(writer.fill(text, **slots) for text in paraphrases),
        )

    attracted = ((ATTRACTED_SINGULAR, False), (ATTRACTED_PLURAL, True))
    undisturbed = ((AGREEMENT_SINGULAR, False), (AGREEMENT_PLURAL, True))
    return SubjectRows(
        canonical=[
            row(frames.canonical, plural, paraphrases=frames.paraphrases)
            for frames, plural in attracted
        ],
        ood=[
            row(end, plural, lead=f"{writer.filler(people=False)} ")
            for frames, plural in attracted
            for end in frames.ends
        ],
        hard_negatives=[
            row(template, plural)
            for frames, plural in undisturbed
            for template in (frames.canonical, writer.choose(frames.ends[1:]))
        ],
        related=_distinct(
            _RELATED_TEXTS,
            lambda: (
                f"{writer.filler()} "
                + writer.fill(writer.choose(WISHES), plain=verb.plain, what=verb.what)
            ),
        ),
    )
