"""The questions of SERAC's QA and QA-hard as their files hold them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tuner.editing.task_folder import read_rows
from tuner.errors import TaskError
from tuner.files.json_file import JsonError, parse_json
from tuner.files.text_file import read_text
from tuner.importers.by_hand import SERAC_QA, SERAC_QA_HARD
from tuner.importers.scoped_edits import ReadState, SplitName
from tuner.validation import describe_problem

_FILE_SPLITS = {"train": "train", "val": "dev", "test": "test"}
# Source: the published code leaves such questions out.
_LEFT_OUT_WORDS = ("sex", "gender")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    answer: str | None = None


class _PublishedRow(BaseModel):
    """Fields of the published file that matter here; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input: str
    alternatives: tuple[str, ...]
    filtered_rephrases: tuple[str, ...]
    output: tuple[_Answer, ...]


_Implied = tuple[str, str, object]
_IMPLIED = TypeAdapter(list[list[_Implied]])


@final
@dataclass(frozen=True)
class Question:
    """A question that may be edited.

    Attributes:
        record: Its line in the published file.
        answer: The true answer.
        alternatives: Other answers; an edit writes one of them.
        implied: Further questions, with answers, that follow from the true answer.
        statement: Question and true answer as one sentence; "" where there is none.
    """

    record: str
    prompt: str
    answer: str
    alternatives: tuple[str, ...]
    rephrases: tuple[str, ...]
    implied: tuple[tuple[str, str], ...] = ()
    statement: str = ""


def read_questions(
    folder: Path, split: SplitName, reading: ReadState, *, hard: bool
) -> tuple[Path, tuple[Question, ...]]:
    """Return the file of a split and its usable questions, each asked once.

    Usable are those with an alternative and a rephrase, and not about sex or gender. Questions
    that stand in an earlier split too are left out.

    Source: Mitchell et al. 2022 (arXiv:2206.06520), the fields of their files and the rows that
    their code keeps.

    Raises:
        TaskError: a file is missing or a row is malformed; names file and line.
    """
    part = _FILE_SPLITS[split]
    names = [f"structured_zeroshot-{part}-new_annotated_final.jsonl"]
    if hard:
        names += [f"impl_{part}.json", f"zsre_yn_{part}.txt"]
    path, *further = (SERAC_QA_HARD if hard else SERAC_QA).find(folder, names)
    rows = list(read_rows(path, _PublishedRow))
    implied: list[list[_Implied]] = []
    statements: list[str] = []
    if hard:
        implied = _read_implied(further[0], len(rows))
        statements = _read_statements(further[1], len(rows))
    # Both may be shorter than the file of questions: the last rows have none.
    implied += [[] for _ in range(len(rows) - len(implied))]
    statements += [""] * (len(rows) - len(statements))
    return path, tuple(_usable(rows, implied, statements, reading))


def _usable(
    rows: list[tuple[int, _PublishedRow]],
    implied: list[list[_Implied]],
    statements: list[str],
    reading: ReadState,
) -> Iterator[Question]:
    asked: set[str] = set()
    for (line, row), further, statement in zip(rows, implied, statements, strict=True):
        prompt = row.input.strip()
        answer = (row.output[0].answer or "").strip() if row.output else ""
        alternatives = tuple(
            text.strip() for text in row.alternatives if text.strip() not in ("", answer)
        )
        rephrases = dict.fromkeys(text.strip() for text in row.filtered_rephrases)
        reason = None
        if not answer:
            reason = "had no answer"
        elif not alternatives:
            reason = "had no other answer"
        elif not set(rephrases) - {prompt, ""}:
            reason = "had no rephrase"
        elif any(word in prompt for word in _LEFT_OUT_WORDS):
            reason = "were about sex or gender"
        elif prompt in asked:
            reason = "repeated an earlier question"
        elif prompt in reading.taken:
            reason = "stood in another split too"
        if reason:
            reading.left_out[reason] += 1
            continue
        asked.add(prompt)
        yield Question(
            record=str(line),
            prompt=prompt,
            answer=answer,
            alternatives=alternatives,
            rephrases=tuple(text for text in rephrases if text not in (prompt, "")),
            implied=tuple((q.strip(), a.strip()) for q, a, _ in further if q.strip() and a.strip()),
            # Source: the published code closes up hyphens here.
            statement=statement.strip().replace(" - ", "-"),
        )


def _read_implied(path: Path, rows: int) -> list[list[_Implied]]:
    text = read_text(path, TaskError)
    try:
        content = parse_json(text)
    except JsonError as error:
        raise TaskError(f"{path}:{error.line or 1}: not valid JSON: {error}.") from None
    try:
        implied = _IMPLIED.validate_python(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        number = problem["loc"][0] + 1 if problem["loc"] else 1  # type: ignore[operator]
        raise TaskError(f"{path}: record {number}: {describe_problem(problem)}") from None
    _refuse_longer(path, len(implied), rows)
    return implied


def _read_statements(path: Path, rows: int) -> list[str]:
    # Not splitlines: only these ends count, as in the file of questions.
    lines = read_text(path, TaskError).removesuffix("\n").split("\n")
    _refuse_longer(path, len(lines), rows)
    return lines


def _refuse_longer(path: Path, entries: int, rows: int) -> None:
    if entries > rows:
        raise TaskError(
            f"{path}: must have one entry per question, but has {entries} for {rows}. Is it of "
            "another split?"
        )
