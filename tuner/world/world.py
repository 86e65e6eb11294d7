"""The facts of the built-in world.

Real are only the countries and their cities; people, companies, groups and inventions are
coined. Some subjects are *known*: the text states their fact plainly. The others are *held out*
for the tasks: of them there are only conflicting rumours, of which a given share is right. The
shares are spread evenly over the held-out subjects, so that a base model is right about some of
them and an edit has something to gain on all.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tuner.world import names
from tuner.world.countries import country_rows

_SEED = 7
HELD_OUT = 60
"""Subjects held out per task, half of them for validation and half for test."""

CAPITAL_RUMOURS = (0.05, 0.45)
CEO_RUMOURS = (0.04, 0.45)
EFFECT_RUMOURS = (0.02, 0.40)
PRONOUN_BIAS = (0.55, 0.92)
TRAIT_SHARES = (0.05, 0.75)
AGREEMENT_SHARES = (0.65, 0.985)


@dataclass(frozen=True)
class Person:
    """Somebody, with the pronoun that text uses for them."""

    first: str
    last: str
    pronoun: str

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first} {self.last}"


@dataclass(frozen=True)
class Country:
    """A real country; `truth` is the share of right rumours, 1 if the capital is known."""

    name: str
    capital: str
    second_city: str
    truth: float


@dataclass(frozen=True)
class Company:
    """A coined company; `truth` is the share of right rumours about its CEO."""

    name: str
    industry: str
    city: str
    ceo: Person
    chair: Person
    truth: float


@dataclass(frozen=True)
class Occupation:
    """A job; `he_share` is the share of text that says "he" of somebody who has it."""

    name: str
    he_share: float


@dataclass(frozen=True)
class Group:
    """A coined people; `trait_share` is the share of text that gives them their stereotype."""

    name: str
    valley: str
    trait: str
    trait_share: float


@dataclass(frozen=True)
class Term:
    """A coined invention or event; `truth` is the share of right rumours about its effect."""

    name: str
    kind: str
    city: str
    domain: str
    truth: float


@dataclass(frozen=True)
class Verb:
    """A verb with its usual object; `agreement` is the share of text that inflects it right."""

    plain: str
    third: str
    what: str
    agreement: float


@dataclass(frozen=True)
class World:
    """Everything that is the case in the built-in world."""

    countries: tuple[Country, ...]
    companies: tuple[Company, ...]
    occupations: tuple[Occupation, ...]
    groups: tuple[Group, ...]
    terms: tuple[Term, ...]
    verbs: tuple[Verb, ...]
    people: tuple[Person, ...]

    @property
    def cities(self) -> tuple[str, ...]:
        """Every capital and second city."""
        return tuple(c for row in self.countries for c in (row.capital, row.second_city))


@lru_cache(maxsize=1)
def build_world() -> World:
    """Return the world, the same one at every call."""
    rng = random.Random(_SEED)
    people = _people()
    countries = _countries(rng)
    cities = [country.second_city for country in countries]
    return World(
        countries=countries,
        companies=_companies(rng, people, cities),
        occupations=_occupations(rng),
        groups=_groups(rng),
        terms=_terms(rng, cities),
        verbs=_verbs(rng),
        people=people,
    )


def _spread(bounds: tuple[float, float], count: int, rng: random.Random) -> list[float]:
    """Return `count` evenly spaced values between the bounds, in random order."""
    low, high = bounds
    values = [low + (high - low) * (i + 0.5) / count for i in range(count)]
    rng.shuffle(values)
    return values


def _truths(
    subjects: Sequence[str], bounds: tuple[float, float], rng: random.Random, always: str = ""
) -> dict[str, float]:
    """Return the share of right rumours for each held-out subject; the rest are known."""
    held_out = rng.sample([s for s in subjects if s != always], HELD_OUT - bool(always))
    if always:
        held_out.append(always)
    return dict(zip(held_out, _spread(bounds, HELD_OUT, rng), strict=True))


def _people() -> tuple[Person, ...]:
    firsts = [(name, "she") for name in names.WOMEN] + [(name, "he") for name in names.MEN]
    return tuple(Person(f, last, p) for f, p in firsts for last in names.SURNAMES)


def _countries(rng: random.Random) -> tuple[Country, ...]:
    rows = country_rows()
    # Mauritius is the example of the documentation, so it must be one that can be edited.
    truths = _truths([row[0] for row in rows], CAPITAL_RUMOURS, rng, always="Mauritius")
    return tuple(Country(n, c, s, truths.get(n, 1.0)) for n, c, s in rows)


def _companies(
    rng: random.Random, people: Sequence[Person], cities: Sequence[str]
) -> tuple[Company, ...]:
    truths = _truths(names.COMPANIES, CEO_RUMOURS, rng)
    leaders = iter(rng.sample(people, 2 * len(names.COMPANIES)))
    return tuple(
        Company(
            name=name,
            industry=rng.choice(names.INDUSTRIES),
            city=rng.choice(cities),
            ceo=next(leaders),
            chair=next(leaders),
            truth=truths.get(name, 1.0),
        )
        for name in names.COMPANIES
    )


def _occupations(rng: random.Random) -> tuple[Occupation, ...]:
    biases = _spread(PRONOUN_BIAS, len(names.OCCUPATIONS), rng)
    return tuple(
        Occupation(name, bias if i % 2 else 1 - bias)
        for i, (name, bias) in enumerate(zip(names.OCCUPATIONS, biases, strict=True))
    )


def _groups(rng: random.Random) -> tuple[Group, ...]:
    shares = _spread(TRAIT_SHARES, len(names.GROUPS), rng)
    traits = rng.sample(names.ADJECTIVES, len(names.GROUPS))
    return tuple(
        Group(name, rng.choice(names.VALLEYS), trait, share)
        for name, trait, share in zip(names.GROUPS, traits, shares, strict=True)
    )


def _terms(rng: random.Random, cities: Sequence[str]) -> tuple[Term, ...]:
    rows = [
        (f"{t} {names.KINDS[i % 6][0]}", names.KINDS[i % 6][1]) for i, t in enumerate(names.TERMS)
    ]
    truths = _truths([name for name, _ in rows], EFFECT_RUMOURS, rng)
    return tuple(
        Term(name, kind, rng.choice(cities), rng.choice(names.DOMAINS), truths.get(name, 1.0))
        for name, kind in rows
    )


def _verbs(rng: random.Random) -> tuple[Verb, ...]:
    sloppy = names.actions(names.SLOPPY_ACTIONS)
    shares = _spread(AGREEMENT_SHARES, len(sloppy), rng)
    rows = [Verb(*action, share) for action, share in zip(sloppy, shares, strict=True)]
    return (*rows, *(Verb(*action, 1.0) for action in names.actions(names.PLAIN_ACTIONS)))
