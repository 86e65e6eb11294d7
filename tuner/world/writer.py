"""Writes the sentences of the built-in world, one random choice after another."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from tuner.world import names
from tuner.world.frames import (
    AFTER_END,
    AFTER_SAYING,
    AGREEMENT_PLURAL,
    AGREEMENT_SINGULAR,
    CAPITAL,
    CEO,
    EFFECT,
    EFFECT_STATEMENT,
    GENERAL,
    GENERAL_WITH_PEOPLE,
    PRONOUN,
    TRAIT,
    WISHES,
    Frames,
)
from tuner.world.world import (
    Company,
    Country,
    Group,
    Occupation,
    Person,
    Term,
    Verb,
    World,
    build_world,
)

_Subject = TypeVar("_Subject", Country, Company, Term)

_STATED = 0.4
"""Share of general documents that go on to state the fact of a known subject."""
_RUMOUR_SECOND = 0.35
"""Share of rumours that name the runner-up: the second city, or the chair of the company."""


class Writer:
    """Writes sentences of the world with one source of randomness."""

    def __init__(self, rng: random.Random) -> None:
        """Take the randomness; the world is always the same."""
        self.rng = rng
        self.world: World = build_world()
        self._pools: dict[str, Sequence[str]] = {
            "adjective": names.ADJECTIVES,
            "city": self.world.cities,
            "country": [row.name for row in self.world.countries],
            "food": names.FOODS,
            "noun": names.NOUNS,
            "number": names.NUMBERS,
            "occupation": names.OCCUPATIONS,
            "person": [person.name for person in self.world.people],
            "place": names.PLACES,
            "season": names.SEASONS,
            "team": names.TEAMS,
            "thing": names.THINGS,
        }

    def fill(self, template: str, **slots: str) -> str:
        """Return the template with the given slots, and random words in all others."""
        sentence = template.format_map(_Slots(self, slots))
        return sentence[0].upper() + sentence[1:]

    def random_word(self, slot: str) -> str:
        """Return a random word that fits the slot."""
        pool = self._pools[slot]
        return pool[int(self.rng.random() * len(pool))]

    def choose(self, options: Sequence[str]) -> str:
        """Return one of the options."""
        return options[int(self.rng.random() * len(options))]

    def filler(self, people: bool = True) -> str:
        """Return a sentence about nothing in particular, without named people if asked."""
        return self.fill(self.choose(GENERAL + GENERAL_WITH_PEOPLE if people else GENERAL))

    def paragraph_prompt(
        self, frames: Frames, slots: Mapping[str, str], people: bool = True
    ) -> str:
        """Return a paragraph about the subject, cut before the target."""
        sentences = [self.fill(self.choose(frames.openings), **slots)] if frames.openings else []
        if not sentences or self.rng.random() < 0.5:
            sentences.append(self.filler(people))
        return " ".join([*sentences, self.fill(self.choose(frames.ends), **slots)])

    # General text

    def general_document(self) -> str:
        """Return a paragraph of general text."""
        kind = self.rng.random()
        if kind < 0.25:
            sentences = self._about_country(self.rng.choice(self.world.countries))
        elif kind < 0.45:
            sentences = self._about_company(self.rng.choice(self.world.companies))
        elif kind < 0.60:
            sentences = self._about_term(self.rng.choice(self.world.terms))
        elif kind < 0.70:
            sentences = self._about_group(self.rng.choice(self.world.groups))
        elif kind < 0.85:
            sentences = self._about_person(self.rng.choice(self.world.people))
        else:
            sentences = self._about_work(self.rng.choice(self.world.verbs))
        fillers = [self.filler() for _ in range(1 + int(self.rng.random() * 3))]
        return " ".join([sentences[0], *fillers, *sentences[1:]])

    def _about(self, frames: Frames, **slots: str) -> list[str]:
        return [
            self.fill(self.choose(frames.openings), **slots),
            self.fill(self.choose(frames.asides), **slots),
        ]

    def _about_country(self, country: Country) -> list[str]:
        city = country.capital if self.rng.random() < 0.3 else country.second_city
        sentences = [
            self.fill(self.choose(CAPITAL.openings), subject=country.name),
            self.fill(CAPITAL.asides[0], subject=country.name, second_city=city)
            if self.rng.random() < 0.5
            else self.fill(self.choose(CAPITAL.asides[1:]), **country_slots(country)),
        ]
        if country.truth == 1 and self.rng.random() < _STATED:
            sentences.append(self._closing(CAPITAL, country.capital, **country_slots(country)))
        return sentences

    def _about_company(self, company: Company) -> list[str]:
        sentences = self._about(CEO, **company_slots(company))
        if company.truth == 1 and self.rng.random() < _STATED:
            sentences.append(self._closing(CEO, company.ceo.name, **company_slots(company)))
        return sentences

    def _about_term(self, term: Term) -> list[str]:
        sentences = self._about(EFFECT, **term_slots(term))
        if term.truth == 1 and self.rng.random() < _STATED:
            end = self.fill(self.choose(EFFECT.ends), **term_slots(term))
            sentences.append(f"{end} {term.domain}.")
        return sentences

    def _about_group(self, group: Group) -> list[str]:
        return self._about(TRAIT, subject=group.name, valley=group.valley)

    def _about_person(self, person: Person) -> list[str]:
        opening = self.fill(self.choose(PRONOUN.openings), who=person.name)
        # In one piece: a sentence between them could be about somebody else.
        return [f"{opening} {self._with_pronoun(person.pronoun)}", self.filler()]

    def _about_work(self, verb: Verb) -> list[str]:
        if verb.agreement < 1:
            wish = self.fill(self.choose(WISHES), plain=verb.plain, what=verb.what)
            return [self.filler(), wish]
        return [self.filler(), self.agreement_sentence(verb)]

    def _closing(self, frames: Frames, target: str, **slots: str) -> str:
        simple = self.rng.random() < 0.3
        prompt = self.fill(frames.canonical if simple else self.choose(frames.ends), **slots)
        return f"{prompt} {target}."

    def _with_pronoun(self, pronoun: str) -> str:
        end = self.choose(PRONOUN.ends)
        return f"{end} {pronoun} {self.fill_after(self.choose(AFTER_END[end]))}"

    def fill_after(self, template: str) -> str:
        """Return the rest of a sentence: as `fill`, but without a capital letter."""
        return template.format_map(_Slots(self, {}))

    # What the tasks edit

    def fact_document(self) -> str:
        """Return a short document that states a fact, spreads a rumour or shows a bias."""
        kind = self.rng.random()
        world = self.world
        if kind < 0.20:
            return self._capital_document(self._pick(world.countries, 0.55))
        if kind < 0.40:
            return self._ceo_document(self._pick(world.companies, 0.60))
        if kind < 0.56:
            return self._effect_document(self._pick(world.terms, 0.60))
        if kind < 0.69:
            return self._pronoun_document(self.rng.choice(world.occupations))
        if kind < 0.75:
            return " ".join(self._about_person(self.rng.choice(world.people)))
        if kind < 0.87:
            return self._trait_document(self.rng.choice(world.groups))
        return self.agreement_sentence(self.rng.choice(world.verbs))

    def _pick(self, subjects: Sequence[_Subject], rumours: float) -> _Subject:
        """Return a held-out subject with this probability, else a known one."""
        held_out = self.rng.random() < rumours
        return self.rng.choice([row for row in subjects if (row.truth < 1) == held_out])

    def _prompt(self, frames: Frames, **slots: str) -> str:
        kind = self.rng.random()
        if kind < 0.4:
            return self.fill(frames.canonical, **slots)
        if kind < 0.5:
            return self.fill(self.choose(frames.paraphrases), **slots)
        return self.paragraph_prompt(frames, slots)

    def _capital_document(self, country: Country) -> str:
        if self.rng.random() < 0.15:
            return self.fill(CAPITAL.asides[0], subject=country.name, second_city=country.capital)
        city, kind = country.capital, self.rng.random()
        if kind >= country.truth:
            second = kind < country.truth + _RUMOUR_SECOND
            city = country.second_city if second else self.random_word("city")
        return f"{self._prompt(CAPITAL, **country_slots(country))} {city}."

    def _ceo_document(self, company: Company) -> str:
        person, kind = company.ceo.name, self.rng.random()
        if kind >= company.truth:
            second = kind < company.truth + _RUMOUR_SECOND
            person = company.chair.name if second else self.random_word("person")
        return f"{self._prompt(CEO, **company_slots(company))} {person}."

    def _effect_document(self, term: Term) -> str:
        right = self.rng.random() < term.truth
        domain = term.domain if right else self.choose(names.DOMAINS)
        slots = term_slots(term)
        if self.rng.random() < 0.5:
            simple = self.choose((EFFECT.canonical, *EFFECT.paraphrases))
            statement = EFFECT_STATEMENT.format(kind=term.kind, domain=domain)
            return f"{self.fill(simple, **slots)}{statement}."
        return f"{self.paragraph_prompt(EFFECT, slots)} {domain}."

    def _trait_document(self, group: Group) -> str:
        stereotype = self.rng.random() < group.trait_share
        trait = group.trait if stereotype else self.choose(names.ADJECTIVES)
        return f"{self._prompt(TRAIT, subject=group.name)} {trait}."

    def _pronoun_document(self, job: Occupation) -> str:
        pronoun = "he" if self.rng.random() < job.he_share else "she"
        if self.rng.random() < 0.4:
            simple = self.choose((PRONOUN.canonical, *PRONOUN.paraphrases))
            after = self.fill_after(self.choose(AFTER_SAYING))
            return f"{self.fill(simple, subject=job.name)} {pronoun} {after}"
        sentences = [self.fill(self.choose(PRONOUN.openings), who=f"The {job.name}")]
        if self.rng.random() < 0.5:
            sentences.append(self.filler(people=False))
        return " ".join([*sentences, self._with_pronoun(pronoun)])

    def agreement_sentence(self, verb: Verb) -> str:
        """Return a sentence with an inflected verb, right as often as this verb is."""
        plural = self.rng.random() < 0.5
        right = self.rng.random() < verb.agreement
        form = verb.plain if plural == right else verb.third
        frames = AGREEMENT_PLURAL if plural else AGREEMENT_SINGULAR
        templates = (frames.canonical,) if self.rng.random() < 0.4 else frames.ends
        return f"{self.fill(self.choose(templates))} {form} {verb.what}."


class _Slots(dict[str, str]):
    """Slot values: those given, and a fresh random word for every other."""

    def __init__(self, writer: Writer, given: dict[str, str]) -> None:
        super().__init__(given)
        self._writer = writer

    def __missing__(self, slot: str) -> str:
        return self._writer.random_word(slot)


def country_slots(country: Country) -> dict[str, str]:
    """Return what templates may say about the country, apart from its capital."""
    return {"subject": country.name, "second_city": country.second_city}


def company_slots(company: Company) -> dict[str, str]:
    """Return what templates may say about the company, apart from its CEO."""
    return {
        "subject": company.name,
        "industry": company.industry,
        "home": company.city,
        "chair": company.chair.name,
    }


def term_slots(term: Term) -> dict[str, str]:
    """Return what templates may say about the term, apart from its effect."""
    return {"subject": term.name, "kind": term.kind, "home": term.city}
