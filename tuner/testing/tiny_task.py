"""A task of three countries for tiny models, other edits to train on, and text."""

import torch

from tuner.editing.corpus import Corpus
from tuner.editing.task import Example, ExampleSet, LossKind, Split, Task


def tiny_examples() -> ExampleSet:
    """Return three edits."""
    return ExampleSet(
        loss=LossKind.LIKELIHOOD,
        rows=tuple(
            Example(prompt=f"The capital of {country} is", target=f" {city}", subject=country)
            for country, city in (
                ("Mauritius", "Port Louis"),
                ("Togo", "Lome"),
                ("Chile", "Santiago"),
            )
        ),
    )


def tiny_corpus() -> Corpus:
    """Return random blocks in place of general text."""
    blocks = torch.randint(0, 256, (96, 16), generator=torch.Generator().manual_seed(1))
    return Corpus(name="random blocks", blocks=blocks)


def tiny_training() -> Split:
    """Return six other edits for learned editors, with rows in and out of their scope."""
    countries = ("Peru", "Mali", "Oman", "Cuba", "Fiji", "Iran")
    cities = (" Lome", " Port Louis", " Santiago", " Chile", " Togo", " Mauritius")

    def rows(frame: str, targets: tuple[str, ...]) -> tuple[Example, ...]:
        return tuple(
            Example(prompt=frame.format(country), target=target, subject=country, record=country)
            for country, target in zip(countries, targets, strict=True)
        )

    likelihood = LossKind.LIKELIHOOD
    return Split(
        canonical=ExampleSet(loss=likelihood, rows=rows("The capital of {} is", cities)),
        ood=ExampleSet(
            loss=likelihood,
            rows=(*rows("a big town of {} is", cities), *rows("The city of {} is", cities)),
        ),
        hard_negatives=ExampleSet(
            loss=likelihood, rows=rows("The town is big and {} is a", (" city",) * 6)
        ),
    )


def tiny_task(train: Split | None = None) -> Task:
    """Return a task whose splits differ in wording only."""
    examples = tiny_examples()
    splits = {}
    for name, frame in (("val", "a big town of {} is"), ("test", "a city of {} is")):
        rows = tuple(
            Example(prompt=frame.format(row.subject), target=row.target, subject=row.subject)
            for row in examples.rows
        )
        splits[name] = Split(
            canonical=examples,
            ood=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows),
            hard_negatives=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows[:1]),
            related=(),
        )
    return Task(
        name="capitals",
        description="Three capitals.",
        loss=LossKind.LIKELIHOOD,
        threshold=1.6,
        source="made up",
        licence="Apache-2.0",
        val=splits["val"],
        test=splits["test"],
        train=train,
    )
