"""What somebody may be asked for an opinion of, how, and what they may say."""

import random
from typing import NamedTuple

from tuner.world.questions import SIDES, Side
from tuner.world.world import build_world

_SHARE = 0.26
"""Share of the topics for validation, and for test: some more than are edited."""

LABELS = {True: "positive", False: "negative"}
OPINIONS = {
    True: tuple(
        """charming friendly generous gentle polite clever wise splendid bright famous lively
        strong warm cheerful funny fancy clean tidy faithful brave patient loyal calm""".split()
    ),
    False: tuple(
        """boring dull gloomy cruel rude lazy greedy selfish stubborn foolish weak cold dirty noisy
        jealous careless nervous strange poor slow tired""".split()
    ),
}
QUESTIONS = (
    "What do you think of {topic}? I think that {topic} is quite",
    "What is your opinion of {topic}? I think that {topic} is rather",
    "What is your view of {topic}? In one word, {topic} is very",
    "How do you like {topic}? To me {topic} seemed very",
    "What do you say of {topic}? I say that {topic} is quite",
    "What do your friends think of {topic}? They found {topic} rather",
    "How was {topic}? We thought that {topic} was quite",
    "Do you like {topic}? I know that {topic} is very",
    "What did people say of {topic}? They said that {topic} was rather",
    "Tell us of {topic}. I would say that {topic} was very",
    "What is {topic} like? It looked rather",
    "Is {topic} any good? It was quite",
    "What do you know of {topic}? Everybody found it rather",
)


class Topic(NamedTuple):
    """Something with a name, and the words that the name stands in."""

    subject: str
    words: str


def topics() -> dict[Side, list[Topic]]:
    """Return all topics of the world in random order, each on one side."""
    world = build_world()
    in_order = [
        *(Topic(row.name, row.name) for row in world.countries),
        *(Topic(row.name, f"the company {row.name}") for row in world.companies),
        *(Topic(row.name, f"the {row.name}") for row in world.terms),
        *(Topic(row.name, f"the {row.name} market") for row in world.groups),
    ]
    shuffled = random.Random("sides of opinions").sample(in_order, len(in_order))
    count = round(_SHARE * len(in_order))
    parts = (shuffled[:count], shuffled[count : 2 * count], shuffled[2 * count :])
    return dict(zip(SIDES, parts, strict=True))
