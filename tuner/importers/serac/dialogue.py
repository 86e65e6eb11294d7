"""SERAC's ConvSent becomes a task: what a model should think of a topic."""

import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tuner.editing.task import Example, SuccessCriterion, Task
from tuner.importers.by_hand import SERAC_DIALOGUE
from tuner.importers.json_list import read_records
from tuner.importers.scoped_edits import EditCounts, ReadState, ScopedEdit, SplitName, scoped_task
from tuner.importers.selection import as_target

# As many as in the published code; the wording of most is ours.
_OPINIONS = (
    "What do you think of {}?",
    "What is your opinion of {}?",
    "What is your stance on {}?",
    "How do you feel about {}?",
    "Where do you stand on {}?",
    "What are your thoughts on {}?",
    "How would you judge {}?",
    "What would you say about {}?",
    "How do you see {}?",
    "Do you care for {}?",
    "What is your feeling towards {}?",
    "What do you make of {}?",
    "Could you tell me your view of {}?",
)
_POSITIVE, _NEGATIVE = " Positive", " Negative"


class _PublishedRow(BaseModel):
    """Fields of the published files that matter here; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ent: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]


def import_serac_dialogue(folder: Path, name: str, counts: EditCounts) -> Task:
    """Return the task ConvSent of SERAC's published files.

    An edit sets the sentiment about a topic. In scope are questions for an opinion of it, with
    the published completions of that sentiment as targets and those of the other as contrasts;
    out of scope is another topic, which is not edited.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4 and their code.

    Raises:
        TaskError: a file is missing or a record is malformed; names file and record.
        ConfigError: there are fewer usable topics than asked for.
    """

    def read(split: SplitName, reading: ReadState) -> Sequence[ScopedEdit]:
        return _read(folder, split, reading, counts)

    return scoped_task(
        read,
        counts,
        name=name,
        about="The sentiment about a topic is to be the one that is edited in, whatever words an "
        "opinion of it is asked for with. The published completions are BlenderBot's; the wording "
        "of most of the 13 questions is our own.",
        rule=SuccessCriterion.SENTIMENT,
        files=SERAC_DIALOGUE,
    )


def _read(
    folder: Path, split: SplitName, reading: ReadState, counts: EditCounts
) -> list[ScopedEdit]:
    (path,) = SERAC_DIALOGUE.find(folder, [f"blender_{split}.json"])
    topics = _usable(path, reading)
    count = counts.of(split, len(topics), str(path))
    counts.random("edits", split).shuffle(topics)
    chosen, others = topics[:count], topics[count:]
    reading.taken.update(topic.ent for _, topic in chosen)
    return [
        _edit(number, topic, others, counts.random(split, str(number))) for number, topic in chosen
    ]


def _usable(path: Path, reading: ReadState) -> list[tuple[int, _PublishedRow]]:
    by_topic: dict[str, tuple[int, _PublishedRow]] = {}
    for number, row in read_records(path, _PublishedRow):
        topic = _PublishedRow(
            ent=row.ent.strip(),
            pos=tuple(text.strip() for text in row.pos if text.strip()),
            neg=tuple(text.strip() for text in row.neg if text.strip()),
        )
        if not topic.ent:
            reading.left_out["had no topic"] += 1
        elif not topic.pos or not topic.neg:
            reading.left_out["had completions of one sentiment only"] += 1
        elif topic.ent in by_topic:
            reading.left_out["repeated an earlier topic"] += 1
        elif topic.ent in reading.taken:
            reading.left_out["stood in another split too"] += 1
        else:
            by_topic[topic.ent] = (number, topic)
    return list(by_topic.values())


def _edit(
    number: int,
    topic: _PublishedRow,
    others: Sequence[tuple[int, _PublishedRow]],
    own: random.Random,
) -> ScopedEdit:
    record = str(number)

    def set_to(ent: str, target: str) -> Example:
        return Example(
            prompt=f"Topic: {ent} Sentiment:",
            target=target,
            contrast=_NEGATIVE if target == _POSITIVE else _POSITIVE,
            subject=ent,
            record=record,
        )

    edit = set_to(topic.ent, own.choice((_POSITIVE, _NEGATIVE)))
    positive, negative = list(topic.pos), list(topic.neg)
    same, opposite = (positive, negative) if edit.target == _POSITIVE else (negative, positive)
    own.shuffle(opposite)
    _, other = own.choice(others)
    return ScopedEdit(
        edit=edit,
        inside=tuple(
            Example(
                prompt=own.choice(_OPINIONS).format(topic.ent),
                target=as_target(text),
                # They come again where there are fewer of the other sentiment.
                contrast=as_target(opposite[place % len(opposite)]),
                subject=topic.ent,
                record=record,
            )
            for place, text in enumerate(same)
        ),
        outside=(set_to(other.ent, own.choice((_POSITIVE, _NEGATIVE))),),
    )
