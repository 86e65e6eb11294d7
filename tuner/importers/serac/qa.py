"""SERAC's questions, QA and QA-hard, become a task."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tuner.editing.task import Example, SuccessCriterion, Task
from tuner.importers.by_hand import SERAC_QA, SERAC_QA_HARD
from tuner.importers.scoped_edits import EditCounts, ReadState, ScopedEdit, SplitName, scoped_task
from tuner.importers.selection import as_target
from tuner.importers.serac import qa_hard as serac_qa_hard
from tuner.importers.serac.questions import Question, read_questions

# Rows out of scope come from at most this many questions that are not edited.
_MOST_OTHERS = 20_000

Difficulty = Literal["plain", "hard"]


def import_serac_qa(folder: Path, name: str, counts: EditCounts) -> Task:
    """Return the task QA of SERAC's published files.

    In scope of an edit are its question and a rephrase, out of scope is a question, or a rephrase
    of one, that is not an edit. The published code draws one row in scope per edit where here each
    sort gives one: averaged within edits, that is the same expectation.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4 and their code.

    Raises:
        TaskError: a file is missing or a row is malformed; names file and line.
        ConfigError: there are fewer usable questions than asked for.
    """
    return _import(folder, name, counts, "plain")


def import_serac_qa_hard(folder: Path, name: str, counts: EditCounts) -> Task:
    """Return the task QA-hard of SERAC's published files.

    In scope are also a question that the new answer implies and a True/False question; out of
    scope is also one of the questions near the edited one. Nearness is that of shared words where
    the published code uses sentence embeddings (all-MiniLM-L6-v2), so that no further model is
    needed.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), §4 and their code.

    Raises:
        TaskError: a file is missing or a row is malformed; names file and line.
        ConfigError: there are fewer usable questions than asked for, or too few near ones.
    """
    return _import(folder, name, counts, "hard")


_ABOUT: dict[Difficulty, str] = {
    "plain": "An answer other than the true one is to be given to a question and its rephrases.",
    "hard": "An answer other than the true one is to be given to a question, its rephrases, what "
    "it implies and whether it is true. Hard negatives are near by their words, where the "
    "published ones are near by sentence embeddings.",
}


def _import(folder: Path, name: str, counts: EditCounts, difficulty: Difficulty) -> Task:
    def read(split: SplitName, reading: ReadState) -> Sequence[ScopedEdit]:
        return _read(folder, split, reading, counts, difficulty)

    return scoped_task(
        read,
        counts,
        name=name,
        about=_ABOUT[difficulty],
        rule=SuccessCriterion.SEQUENCE,
        files=SERAC_QA_HARD if difficulty == "hard" else SERAC_QA,
    )


def _read(
    folder: Path, split: SplitName, reading: ReadState, counts: EditCounts, difficulty: Difficulty
) -> list[ScopedEdit]:
    hard = difficulty == "hard"
    path, usable = read_questions(folder, split, reading, hard=hard)
    questions = list(usable)
    count = counts.of(split, len(questions), str(path))
    counts.random("edits", split).shuffle(questions)
    chosen, others = questions[:count], questions[count:][:_MOST_OTHERS]
    # What one edit asks is never a rephrase of another's.
    reading.taken.update(question.prompt for question in chosen)
    edits: list[tuple[Example, tuple[Example, ...]]] = []
    for question in chosen:
        # Of its own, so that an edit's rows do not depend on how many others there are.
        own = counts.random(split, question.record)
        edits.append(_inside(question, own, reading, hard=hard))
    asked = {row.prompt for _, inside in edits for row in inside}
    pool = _outside_pool(others, counts.random("out of scope", split), hard=hard)
    pool = [row for row in pool if row.prompt not in asked]
    if not pool:
        raise counts.too_few(split, len(usable), str(path))
    outside: list[list[Example]] = []
    for question in chosen:
        outside.append([counts.random("easy", split, question.record).choice(pool)])
    if hard:
        randoms = [counts.random("hard", split, question.record) for question in chosen]
        prompts = [question.prompt for question in chosen]
        near = serac_qa_hard.hard_negatives(prompts, pool, randoms, str(path))
        for rows, row in zip(outside, near, strict=True):
            rows.append(row)
    return [
        ScopedEdit(
            edit, inside, tuple(row.model_copy(update={"record": edit.record}) for row in rows)
        )
        for (edit, inside), rows in zip(edits, outside, strict=True)
    ]


def _inside(
    question: Question, own: random.Random, reading: ReadState, *, hard: bool
) -> tuple[Example, tuple[Example, ...]]:
    """Return an edit and the rows in its scope, one of each sort that it has."""
    new = own.choice(question.alternatives)

    def asks(prompt: str) -> Example:
        return Example(
            prompt=prompt,
            target=as_target(new),
            contrast=as_target(question.answer),
            record=question.record,
        )

    edit = asks(question.prompt)
    rows = [edit]
    free = [text for text in question.rephrases if text not in reading.taken]
    if free:
        rows.append(asks(own.choice(free)))
    if hard:
        harder = (
            serac_qa_hard.implied_row(question, new, own),
            serac_qa_hard.true_or_false_row(question, new, own),
        )
        rows += [row for row in harder if row is not None and row.prompt not in reading.taken]
    reading.taken.update(row.prompt for row in rows)
    return edit, tuple(rows)


def _outside_pool(
    others: Sequence[Question], shuffles: random.Random, *, hard: bool
) -> list[Example]:
    """Return rows about questions that are not edited, as many of each sort.

    Their targets are the true answers; True/False questions have either, at random.
    """
    sorts = [
        [(question.prompt, question.answer) for question in others],
        [(text, question.answer) for question in others for text in question.rephrases],
    ]
    if hard:
        sorts.append([pair for question in others for pair in question.implied])
        sorts.append(
            [serac_qa_hard.unlabelled(one.statement, shuffles) for one in others if one.statement]
        )
    share = max(1, len(others) // len(sorts))
    rows: dict[str, Example] = {}
    for pairs in sorts:
        shuffles.shuffle(pairs)
        for prompt, answer in pairs[:share]:
            rows[prompt] = Example(prompt=prompt, target=as_target(answer))
    return list(rows.values())
