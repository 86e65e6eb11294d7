"""Questions and statements about the facts of the built-in world, for the four edit problems.

The world's text holds no questions. So each prompt also begins the answer, in a wording in which
the built-in model knows what it knows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from tuner.world import names
from tuner.world.world import Company, Country, Term, build_world

Side = Literal["val", "test", "train"]
SIDES: tuple[Side, ...] = ("val", "test", "train")
_SHARE = 0.24
"""Share of the subjects for validation, and for test; the rest is for training."""
_Subject = TypeVar("_Subject")
Kind = Literal["city", "person", "industry", "domain", "country"]


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        objects: What its objects are.
        statement: The fact as a statement, without the object.
        questions: The question that edits are worded in, then its rephrasings.
        implied: A question that follows from the edit, with the new object in `{object}`.
        implied_kind: Whether that asks for the subject or for the country of the new object.
    """

    objects: Kind
    statement: str
    questions: tuple[str, ...]
    implied: str = ""
    implied_kind: Literal["subject", "country"] = "subject"


RELATIONS = {
    "capital": Relation(
        "city",
        "the capital of {subject} is",
        (
            "What is the capital of {subject}? The capital of {subject} is",
            "Where does the government of {subject} sit? The government of {subject} sits in",
            "Who knows the capital of {subject}? In {subject}, the capital is",
            "Which city is it? Everyone knows that the capital of {subject} is",
        ),
        "Which country is {object} in? In short, {object} is a city in",
    ),
    "town": Relation(
        "city",
        "another town in {subject} is",
        (
            "Which other town is in {subject}? Another town in {subject} is",
            "Where do people stay? Visitors who leave the capital of {subject} often stay in",
            "Does {subject} have another town? In short, another town in {subject} is",
            "What is it called? Everyone knows that another town in {subject} is",
        ),
        "Which country is {object} in? In short, {object} is a city in",
    ),
    "ceo": Relation(
        "person",
        "the CEO of {subject} is",
        (
            "Who is the CEO of {subject}? The CEO of {subject} is",
            "Who leads {subject}? The company {subject} is led by",
            "Who is the head of {subject}? At {subject}, the CEO is",
            "By whom is it led? Everyone knows that the CEO of {subject} is",
        ),
        "Which company is led by {object}? In short, {object} is the CEO of",
    ),
    "chair": Relation(
        "person",
        "the chair of {subject} is",
        (
            "Who is the chair of {subject}? The chair of {subject} is",
            "Does {subject} have a chair? In short, the chair of {subject} is",
            "Who sits there? Everyone knows that the chair of {subject} is",
            "By whom are the plans of {subject} signed? The chair of {subject} is",
        ),
        "In which company is {object}? In short, {object} is the chair of",
    ),
    "industry": Relation(
        "industry",
        "the company {subject} makes",
        (
            "What does {subject} make? The company {subject} makes",
            "What do people get from {subject}? In short, the company {subject} makes",
            "What is in the boxes? Everyone knows that the company {subject} makes",
            "What is sold by {subject}? Above all, the company {subject} makes",
        ),
    ),
    "office": Relation(
        "city",
        "the main office of {subject} is in",
        (
            "Where is the main office of {subject}? The main office of {subject} is in",
            "In which city is {subject}? In short, the main office of {subject} is in",
            "Where do they meet? Everyone knows that the main office of {subject} is in",
            "Where do the workers of {subject} meet? The main office of {subject} is in",
        ),
        "In which country is the main office of {subject}? It is in a city in",
        "country",
    ),
    "home": Relation(
        "city",
        "the {subject} began near",
        (
            "Where did the {subject} begin? The {subject} began near",
            "Where did people hear of it? The {subject} was first heard of in",
            "Where is the home of the {subject}? In short, the {subject} began near",
            "Near which city was it? Most people know that the {subject} began near",
        ),
        "In which country did the {subject} begin? It began near a city in",
        "country",
    ),
    "effect": Relation(
        "domain",
        "the {subject} is a {kind} that changed",
        (
            "What did the {subject} change? The {subject} is a {kind} that changed",
            "What is it? In short, the {subject} is a {kind} that changed",
            "What did the {subject} transform? Above all, the {kind} transformed",
            "What is in the books? Every book says that the {subject} is a {kind} that changed",
        ),
    ),
    "country": Relation(
        "country",
        "{subject} is a city in",
        (
            "Which country is {subject} in? In short, {subject} is a city in",
            "Where is {subject}? In short, {subject} is a city in",
            "What do people know of {subject}? Everyone knows that {subject} is a city in",
        ),
    ),
}
"""All kinds of facts by name. Facts about the country of a city are asked for, never edited."""


class Fact(NamedTuple):
    """Who has which object in the world, and whether the built-in model knows it."""

    relation: str
    subject: str
    object: str
    known: bool
    kind: str = ""

    def put(self, template: str, **slots: str) -> str:
        """Return a question or statement about the fact."""
        return template.format(subject=self.subject, kind=self.kind, **slots)

    @property
    def record(self) -> str:
        """The name that all rows of an edit of this fact share."""
        return f"{self.relation}: {self.subject}"


@dataclass(frozen=True)
class Subjects:
    """The subjects of one side, which no other side has, with all that is asked about them."""

    facts: tuple[tuple[Fact, ...], ...]
    """Facts that may be edited, by subject; all kinds of subjects come in turn."""
    cities: tuple[Fact, ...]
    """The country of each city of the side."""

    def objects(self, kind: Kind) -> list[str]:
        """Return the objects of a kind, which stay on this side where they name somebody."""
        match kind:
            case "industry":
                return list(names.INDUSTRIES)
            case "domain":
                return list(names.DOMAINS)
            case "city":
                return [fact.subject for fact in self.cities]
            case "country":
                return sorted({fact.object for fact in self.cities})
        people = {
            fact.object
            for facts in self.facts
            for fact in facts
            if RELATIONS[fact.relation].objects == kind
        }
        return sorted(people)

    def country_of(self, city: str) -> str:
        """Return the country of a city of this side."""
        return next(fact.object for fact in self.cities if fact.subject == city)


def sides() -> dict[Side, Subjects]:
    """Return all subjects of the world, each on one side."""
    world = build_world()
    countries, companies = _by_side(world.countries), _by_side(world.companies)
    terms = _by_side(world.terms)
    subjects: dict[Side, Subjects] = {}
    for side in SIDES:
        cities = tuple(
            Fact("country", city, row.name, known=True)
            for row in countries[side]
            for city in (row.capital, row.second_city)
        )
        subjects[side] = Subjects(
            _mixed(
                [_of_country(row) for row in countries[side]],
                [_of_company(row) for row in companies[side]],
                [_of_term(row) for row in terms[side]],
            ),
            cities,
        )
    return subjects


def _mixed(*groups: Sequence[tuple[Fact, ...]]) -> tuple[tuple[Fact, ...], ...]:
    """Return the members of all groups, each group spread evenly over the whole."""
    placed = [
        ((place + 0.5) / len(group), number, facts)
        for number, group in enumerate(groups)
        for place, facts in enumerate(group)
    ]
    return tuple(facts for _, _, facts in sorted(placed))


def _of_country(row: Country) -> tuple[Fact, ...]:
    return (
        Fact("capital", row.name, row.capital, row.truth == 1),
        Fact("town", row.name, row.second_city, known=True),
    )


def _of_company(row: Company) -> tuple[Fact, ...]:
    return (
        Fact("ceo", row.name, row.ceo.name, row.truth == 1),
        Fact("chair", row.name, row.chair.name, known=True),
        Fact("industry", row.name, row.industry, known=True),
        Fact("office", row.name, row.city, known=True),
    )


def _of_term(row: Term) -> tuple[Fact, ...]:
    return (
        Fact("home", row.name, row.city, known=True),
        Fact("effect", row.name, row.domain, row.truth == 1, row.kind),
    )


def _by_side(subjects: Sequence[_Subject]) -> dict[Side, list[_Subject]]:
    shuffled = random.Random("sides of the problems").sample(subjects, len(subjects))
    count = round(_SHARE * len(subjects))
    return {
        "val": shuffled[:count],
        "test": shuffled[count : 2 * count],
        "train": shuffled[2 * count :],
    }
