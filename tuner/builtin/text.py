"""Documents of the built-in world: general text, and the mix the model is trained on.

General text is what deviation is measured on. It is written in the same style as the paragraphs
of the tasks and mentions the same subjects, but leaves out what the tasks edit: no capital, CEO
or effect of a held-out subject, no pronoun for an occupation, no trait of a group, no inflected
form of a sloppy verb. An edit therefore costs by what it disturbs, not by what it is meant for.

No two parts share a document: a digest of the document's own words decides its only part, so
this holds for any seeds and any length.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Literal, TypeVar

from tuner.builtin import names
from tuner.builtin.frames import (
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
from tuner.builtin.world import (
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

Part = Literal["search", "confirmation", "auxiliary"]
_Subject = TypeVar("_Subject", Country, Company, Term)

_BUCKETS = 16
_FIRST_BUCKET = {"training": 0, "search": 8, "auxiliary": 10, "confirmation": 12}
_STATED = 0.4
"""Share of general documents that go on to state the fact of a known subject."""
_RUMOUR_SECOND = 0.35
"""Share of rumours that name the runner-up: the second city, or the chair of the company."""


def general_documents(part: Part, seed: int = 0) -> Iterator[str]:
    """Yield general text without end; parts never share a document, whatever their seeds."""
    return _general(part, seed)


def training_documents(seed: int, general_share: float) -> Iterator[str]:
    """Yield the training mix without end: general text, plain facts, rumours and biases."""
    writer = Writer(random.Random(f"mix {seed}"))
    general = _general("training", seed)
    while True:
        if writer.rng.random() < general_share:
            yield next(general)
        else:
            yield writer.fact_document()


def document_part(document: str) -> str:
    """Return the only part that may contain this document."""
    bucket = blake2b(document.encode(), digest_size=2).digest()[0] % _BUCKETS
    return max(
        (part for part, first in _FIRST_BUCKET.items() if first <= bucket),
        key=lambda part: _FIRST_BUCKET[part],
    )


def tokenizer_documents(seed: int) -> Iterator[str]:
    """Yield text to learn the vocabulary from: the mix, then every name many times over.

    Names of held-out subjects are rare in the mix; without the repetition they fall apart into
    letters, and an edit would have to learn spelling instead of a fact.
    """
    yield from islice(training_documents(seed, 0.5), 8000)
    world = build_world()
    targets = [*world.cities, *names.WOMEN, *names.MEN, *names.SURNAMES, *names.DOMAINS]
    targets += [form for verb in world.verbs for form in (verb.plain, verb.third)]
    targets += names.OCCUPATIONS
    targets += [row.name for row in world.countries]
    subjects = [
        *names.COMPANIES,
        *names.TERMS,
        *names.GROUPS,
        *names.VALLEYS,
        *names.ADJECTIVES,
    ]
    for name in targets:
        yield f" {name}" * 300
    for name in subjects:
        yield f" {name}" * 150


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
        return [opening, self._with_pronoun(person.pronoun)]

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
        if kind < 0.30:
            return self._capital_document(self._pick(world.countries, 0.40))
        if kind < 0.56:
            return self._ceo_document(self._pick(world.companies, 0.46))
        if kind < 0.74:
            return self._effect_document(self._pick(world.terms, 0.5))
        if kind < 0.82:
            return self._pronoun_document(self.rng.choice(world.occupations))
        if kind < 0.91:
            return self._trait_document(self.rng.choice(world.groups))
        return self.agreement_sentence(self.rng.choice(world.verbs[: len(world.verbs) * 3 // 5]))

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


def _general(part: str, seed: int) -> Iterator[str]:
    writer = Writer(random.Random(f"general {part} {seed}"))
    while True:
        document = writer.general_document()
        if document_part(document) == part:
            yield document
