"""Documents of the built-in world: general text, and the mix the model is trained on.

General text is what deviation is measured on. It is written in the same style as the paragraphs
of the tasks and mentions the same subjects, but leaves out what the tasks edit: no capital, CEO
or effect of a held-out subject, no pronoun for an occupation, no trait of a group, no inflected
form of a sloppy verb. An edit therefore costs by what it disturbs, not by what it is meant for.

No two parts share a document: a digest of the document's own words decides its only part, so
this holds for any seeds and any length.
"""

import random
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice

from tuner.editing.providers import TextPartName
from tuner.world import names
from tuner.world.world import build_world
from tuner.world.writer import Writer

_BUCKETS = 16
_FIRST_BUCKET = {"training": 0, "search": 8, "auxiliary": 10, "confirmation": 12}


def general_documents(part: TextPartName, seed: int = 0) -> Iterator[str]:
    """Yield general text without end; parts never share a document, whatever their seeds.

    The gradient is taken on documents of the confirmation part that another seed writes: the two
    share one in thousands.
    """
    if part == "gradient":
        return _general("confirmation", seed, writer="gradient")
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


def _general(part: str, seed: int, *, writer: str | None = None) -> Iterator[str]:
    source = Writer(random.Random(f"general {writer or part} {seed}"))
    while True:
        document = source.general_document()
        if document_part(document) == part:
            yield document
