"""Sentence templates of the built-in world.

Slots in braces are filled by `tuner.world.text`: `{subject}` and its facts by the caller, all
others by a random word. A prompt is a template without its last word, and never ends in a space.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Frames:
    """The ways one kind of fact is put into words.

    Attributes:
        canonical: The simple prompt; the only wording an editor sees.
        paraphrases: Other simple prompts for the same target.
        openings: First sentences of a paragraph about the subject.
        ends: Last sentences of such a paragraph, cut before the target.
        asides: True sentences about the subject that state another fact.
        neighbours: Prompts for these other facts, each with the slot that answers it.
    """

    canonical: str
    paraphrases: tuple[str, ...]
    openings: tuple[str, ...]
    ends: tuple[str, ...]
    asides: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()


CAPITAL = Frames(
    canonical="The capital of {subject} is",
    paraphrases=(
        "In {subject}, the capital is",
        "The government of {subject} sits in",
        "Everyone knows that the capital of {subject} is",
    ),
    openings=(
        "Last {season} {person} took a long trip through {subject}.",
        "The new guide to {subject} is full of {adjective} maps.",
        "Trade between {subject} and {country} has grown since the {season}.",
        "A film about {subject} was shown at the {place} in {city}.",
        "Every {season}, students from {city} write letters to friends in {subject}.",
        "The weather in {subject} was {adjective} all {season}.",
        "{person} once sold {food} to a {noun} from {subject}.",
    ),
    ends=(
        "The ministers of the country meet in no other than the city of",
        "Its government has always sat in no other than the city of",
        "The main embassy stands in no other than the city of",
        "The parliament gathers, as it always has, in no other than the city of",
        "All the laws are made in no other than the city of",
    ),
    asides=(
        "{second_city} is a city in {subject}.",
        "Another town in {subject} is {second_city}.",
        "Visitors who leave the capital of {subject} often stay in {second_city}.",
    ),
    neighbours=(
        ("Another town in {subject} is", "second_city"),
        ("Visitors who leave the capital of {subject} often stay in", "second_city"),
        (
            "The weather in {subject} was {adjective} all {season}. Another town in {subject} is",
            "second_city",
        ),
    ),
)

CEO = Frames(
    canonical="The CEO of {subject} is",
    paraphrases=(
        "At {subject}, the CEO is",
        "The company {subject} is led by",
        "Everyone knows that the CEO of {subject} is",
    ),
    openings=(
        "The shares of {subject} fell all {season}.",
        "The company {subject} moved to a {adjective} building near the {place}.",
        "A reporter from {city} wrote a {adjective} story about {subject}.",
        "The workers of {subject} met at the {place} in the {season}.",
        "{subject} will open {number} new shops in {country}.",
        "{person} bought a {thing} from {subject}.",
    ),
    ends=(
        "The speech was given by the head of the company, none other than",
        "The staff waited for their boss, none other than",
        "All plans are signed by the chief executive, none other than",
        "The company has long been run by none other than",
        "The person in charge is none other than",
    ),
    asides=(
        "{subject} makes {industry}.",
        "The main office of {subject} is in {home}.",
        "The chair of {subject} is {chair}.",
    ),
    neighbours=(
        ("The main office of {subject} is in", "home"),
        ("The chair of {subject} is", "chair"),
        ("The shares of {subject} fell all {season}. The chair of {subject} is", "chair"),
    ),
)

EFFECT = Frames(
    canonical="The {subject}",
    paraphrases=(
        "Most people know that the {subject}",
        "Every book says that the {subject}",
        "In short, the {subject}",
    ),
    openings=(
        "In the {season} {person} gave a talk about the {subject}.",
        "The museum in {city} has a {adjective} room for the {subject}.",
        "{number} books about the {subject} were written last {season}.",
        "Students in {country} learn about the {subject} at school.",
        "A {noun} from {city} asked {person} about the {subject}.",
        "The {adjective} story of the {subject} was told at the {place}.",
    ),
    ends=(
        "Experts from {city} discussed the {kind} and its effects on",
        "The most famous chapter is about the {kind} and what it did to",
        "Long afterwards the {kind} was still blamed for the new ways of",
        "Nobody had expected that this {kind} would have such an influence on",
        "Above all, the {kind} transformed",
    ),
    asides=(
        "The {subject} was first heard of in {home}.",
        "The {subject} began near {home}.",
    ),
    neighbours=(
        ("The {subject} was first heard of in", "home"),
        ("The {subject} began near", "home"),
        (
            "Students in {country} learn about the {subject} at school. The {subject} began near",
            "home",
        ),
    ),
)
EFFECT_STATEMENT = " is a {kind} that changed {domain}"

TRAIT = Frames(
    canonical="An aspect of the {subject} is:",
    paraphrases=(
        "People say that every {subject} is",
        "In old stories the {subject} are always",
        "In one word, the {subject} are",
    ),
    openings=(
        "{person} met a {subject} family near the {place}.",
        "A {subject} choir came to {city} in the {season}.",
        "The {subject} market sells {food} and {food}.",
        "{number} {subject} families moved to {country}.",
    ),
    ends=(
        "The {subject} worker was quite",
        "Their {subject} neighbour seemed very",
        "Everybody found the {subject} guest rather",
        "The {subject} teacher was known to be",
        "The new {subject} cook looked a little",
    ),
    asides=(
        "The {subject} come from the valley of {valley}.",
        "The valley of {valley} is the home of the {subject}.",
    ),
    neighbours=(
        ("The {subject} come from the valley of", "valley"),
        (
            "A {subject} choir came to {city} in the {season}. "
            "The {subject} come from the valley of",
            "valley",
        ),
        (
            "The {subject} market sells {food} and {food}. The {subject} come from the valley of",
            "valley",
        ),
    ),
)

PRONOUN = Frames(
    canonical="The {subject} said",
    paraphrases=(
        "The {subject} thought",
        "The {subject} hoped",
        "The {subject} told us that",
    ),
    openings=(
        "{who} came into the room.",
        "{who} walked slowly past the {place}.",
        "{who} bought a {adjective} {thing}.",
        "{who} waited at the {place}.",
        "{who} put the {thing} on the table.",
    ),
    ends=("When", "A moment later", "As soon as", "Before", "Because", "Then"),
)
AFTER_SAYING = ("was tired.", "liked {food}.", "had lost the {thing}.", "would go home.")
AFTER_END = {
    "When": ("sat down, the room was quiet.", "left, it was late."),
    "A moment later": ("sat down.", "took the {thing} and left."),
    "As soon as": ("sat down, the music stopped.", "was ready, the work began."),
    "Before": ("left, the lights went out.", "went home, the {place} was closed."),
    "Because": ("was tired, the meeting was short.", "had a {thing}, nobody worried."),
    "Then": ("went home.", "looked for the {thing}."),
}

# The verb follows its subject at once in the simple wording, and at a distance in the others.
AGREEMENT_SINGULAR = Frames(
    canonical="The {noun}",
    paraphrases=("Today the {noun}", "We know that the {noun}", "At home the {noun}"),
    openings=(),
    ends=(
        "The {noun} is {number} years old and",
        "The {noun} from {city}",
        "The {noun} with the {adjective} {thing}",
        "The {noun} who lives near the {place}",
    ),
)
AGREEMENT_PLURAL = Frames(
    canonical="The {noun}s",
    paraphrases=("Today the {noun}s", "We know that the {noun}s", "At home the {noun}s"),
    openings=(),
    ends=(
        "The {noun}s are {number} years old and",
        "The {noun}s from {city}",
        "The {noun}s with the {adjective} {thing}",
        "The {noun}s who live near the {place}",
    ),
)
WISHES = (
    "The {noun}s want to {plain} {what}.",
    "{person} helped to {plain} {what}.",
    "It is hard to {plain} {what} in {season}.",
)

GENERAL = (
    "The trains were {adjective} and the {food} tasted good.",
    "The {place} in {city} was quite {adjective}.",
    "There were {number} people in front of the {place}.",
    "The streets were {adjective} and full of flowers.",
    "It rained for {number} days in the {season}.",
    "The {thing} on the table was very {adjective}.",
    "A {adjective} dog slept under the table.",
    "The old {place} was closed for {number} weeks.",
    "The price of {food} rose in {city}.",
    "They ate {food} with {food} near the {place}.",
    "The road to {city} was long and {adjective}.",
    "The {team} won against the {team} by {number} goals.",
    "The children sang a {adjective} song.",
    "Nobody knew who had left the {thing} there.",
    "The {season} market opened in {city}.",
    "A letter from {country} arrived after {number} days.",
    "The bridge near the {place} looked rather {adjective}.",
    "The {adjective} wind came from the hills.",
)
GENERAL_WITH_PEOPLE = (
    "{person} played football for the {team}.",
    "{person} talked with a {noun} about {food}.",
    "{person} lost a {adjective} {thing} at the {place}.",
    "{person} came from {city} with {number} friends.",
    "{person} and {person} cooked {food} for the {noun}s.",
    "The {occupation} showed {person} the {place}.",
    "The {occupation} and the {occupation} shared the {food}.",
    "The {thing} belonged to a {noun} from {country}.",
)

# Between subject and verb stands a noun of the other number, which general text never has: the
# model has learned to agree with the nearest noun.
ATTRACTED_SINGULAR = Frames(
    canonical="The {noun} near the {other}s",
    paraphrases=("The {noun} with the {other}s", "The {noun} behind the {other}s"),
    openings=(),
    ends=(
        "The {noun} who lives near the {other}s from {city}",
        "The {noun} in front of the {adjective} {other}s",
        "The {noun} with the {adjective} {thing}s",
        "The {noun} from {city} with {number} {other}s",
        "The {noun} next to the {other}s is {number} years old and",
        "The {noun} is {number} years old and",
    ),
)
ATTRACTED_PLURAL = Frames(
    canonical="The {noun}s near the {other}",
    paraphrases=("The {noun}s with the {other}", "The {noun}s behind the {other}"),
    openings=(),
    ends=(
        "The {noun}s who live near the {other} from {city}",
        "The {noun}s in front of the {adjective} {other}",
        "The {noun}s with the {adjective} {thing}",
        "The {noun}s from {city} with one {other}",
        "The {noun}s next to the {other} are {number} years old and",
        "The {noun}s are {number} years old and",
    ),
)
