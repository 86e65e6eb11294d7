"""What makes SERAC's QA-hard hard: implied and True/False questions, and negatives near an edit."""

import math
import random
import re
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from tuner.editing.task import Example
from tuner.editing.tfidf import nearest_terms
from tuner.errors import ConfigError
from tuner.importers.selection import as_target
from tuner.importers.serac.questions import Question

# Source: Mitchell et al. 2022 (arXiv:2206.06520), their code. Of the 100 nearest questions the 25
# nearest are left out, which may ask for the edited answer in other words; of the rest a nearer
# one is likelier, by exp(cosine / 0.1).
_NEAREST = 100
_TOO_NEAR = 25
_TEMPERATURE = 0.1
# Their wording is ours; there are as many as in the published code.
_PREFIXES = (
    "True or False: ",
    "Is it True or False? ",
    "Say True or False: ",
    "True or False? ",
)


def implied_row(question: Question, new: str, own: random.Random) -> Example | None:
    """Return a question that the edit implies, or None: the true answer in it becomes the new."""
    named = [pair for pair in question.implied if question.answer in pair[0]]
    if not named:
        return None
    prompt, answer = own.choice(named)
    return Example(
        prompt=_replaced(prompt, question.answer, new),
        target=as_target(answer),
        record=question.record,
    )


def true_or_false_row(question: Question, new: str, own: random.Random) -> Example | None:
    """Return a question whether the answer is the new one or a third one, or None."""
    if question.answer.casefold() not in question.statement.casefold():
        return None
    thirds = [answer for answer in question.alternatives if answer != new]
    is_true = own.random() < 0.5 or not thirds
    said = new if is_true else own.choice(thirds)
    right, wrong = ("True", "False") if is_true else ("False", "True")
    return Example(
        prompt=_asked(_replaced(question.statement, question.answer, said), own),
        target=as_target(right),
        contrast=as_target(wrong),
        record=question.record,
    )


def unlabelled(statement: str, own: random.Random) -> tuple[str, str]:
    """Return a True/False question about a statement, with either answer at random."""
    return _asked(statement, own), own.choice(("True", "False"))


def hard_negatives(
    prompts: Sequence[str],
    pool: Sequence[Example],
    randoms: Sequence[random.Random],
    source: str,
) -> Iterator[Example]:
    """Yield for each prompt a row of the pool that is near it by its words, and not nearest.

    Raises:
        ConfigError: the pool is too small for that.
    """
    if len(pool) <= _TOO_NEAR:
        raise ConfigError(
            f"{source}: a hard negative is none of the {_TOO_NEAR} rows nearest to its edit, but "
            f"there are only {len(pool)} rows out of scope. Lower the numbers of edits, or give a "
            "longer file."
        )
    neighbours = nearest_terms(
        (_words(prompt) for prompt in prompts), [_words(row.prompt) for row in pool], _NEAREST
    )
    bar = tqdm(neighbours, total=len(prompts), desc="near questions", disable=None, leave=False)
    for nearest, own in zip(bar, randoms, strict=True):
        kept = nearest[_TOO_NEAR:]
        weights = [math.exp(near.cosine / _TEMPERATURE) for near in kept]
        yield pool[own.choices(kept, weights)[0].place]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _replaced(text: str, old: str, new: str) -> str:
    # As a function: the new answer may hold what looks like a group's number.
    return re.sub(re.escape(old), lambda _: new, text, flags=re.IGNORECASE)


def _asked(statement: str, own: random.Random) -> str:
    prefix = own.choice(_PREFIXES)
    return (prefix.lower() if own.random() < 0.5 else prefix) + statement
