"""Hints about a task's rows: what may be meant so, and more often is not."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tuner.editing.task import Example, GenerationPrompt, LossKind
from tuner.editing.task_folder import find_task, read_rows
from tuner.files.text_file import is_file
from tuner.validation import show_path, show_value

_Numbered = list[tuple[int, Example]]

_SPLITS = ("val", "test", "train")
_PARTS = ("canonical", "ood", "hard_negatives", "neighbours", "facts")
# Of many rows with the same flaw, so many are named.
_NAMED = 5
# Scripts that write words without blanks between them.
_WITHOUT_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def task_hints(name_or_path: str | Path, loss: LossKind) -> list[str]:
    """Return a line for each kind of flaw in each file of a valid task, with file and line.

    They are hints: a task with hints is loaded and run like any other.
    """
    folder = find_task(name_or_path)
    hints: list[str] = []
    for split in _SPLITS:
        for part in _PARTS:
            path = folder / split / f"{part}.jsonl"
            if is_file(path):
                rows = list(read_rows(path, Example))
                hints += _about_borders(path, rows)
                if part == "canonical":
                    hints += _about_repetition(path, rows, loss)
        path = folder / split / "generations.jsonl"
        if is_file(path):
            prompts = [
                (number, Example(prompt=row.prompt, target=" "))
                for number, row in read_rows(path, GenerationPrompt)
            ]
            hints += _gathered(path, prompts, _ends_in_a_blank)
    return hints


def _about_borders(path: Path, rows: _Numbered) -> Iterator[str]:
    for flaw in (_lacks_a_blank, _ends_in_a_blank):
        yield from _gathered(path, rows, flaw)


def _gathered(path: Path, rows: _Numbered, flaw: Callable[[Example], str | None]) -> Iterator[str]:
    flawed = [(number, said) for number, row in rows if (said := flaw(row)) is not None]
    if flawed:
        number, said = flawed[0]
        yield f"{show_path(path)}:{number}: {said}{_and_others([n for n, _ in flawed[1:]])}"


def _and_others(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    named = ", ".join(str(number) for number in numbers[:_NAMED])
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f" So it is in line {named}{more}."


def _lacks_a_blank(row: Example) -> str | None:
    for name, text in (("target", row.target), ("contrast", row.contrast)):
        if text and row.prompt and _is_of_a_word(row.prompt[-1]) and _is_of_a_word(text[0]):
            joined = show_value(row.prompt[-20:] + text[:20])
            return (
                f"prompt and {name} run into each other: …{joined}…; a {name} brings the blank "
                "that it begins with."
            )
    return None


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() and not unicodedata.name(character, "").startswith(_WITHOUT_BLANKS)


def _ends_in_a_blank(row: Example) -> str | None:
    if row.prompt.endswith((" ", "\t", "\N{NO-BREAK SPACE}")):
        return (
            f"the prompt ends in a blank: …{show_value(row.prompt[-20:])}; models read a blank as "
            "a part of the word behind it, so the target should begin with it."
        )
    return None


def _contradict(one: Example, other: Example, loss: LossKind) -> bool:
    """Return whether two edits of one prompt cannot both be had."""
    match loss:
        case LossKind.LIKELIHOOD:
            return one.target != other.target
        case LossKind.PREFER:
            return one.target == other.contrast or one.contrast == other.target
        case LossKind.SUPPRESS | LossKind.BALANCE:
            return False


def _about_repetition(path: Path, rows: _Numbered, loss: LossKind) -> Iterator[str]:
    by_prompt: defaultdict[str, list[tuple[int, Example]]] = defaultdict(list)
    for number, row in rows:
        by_prompt[row.prompt].append((number, row))
    again, against = [], []
    for same in by_prompt.values():
        first, *others = same
        for number, row in others:
            if (row.target, row.contrast) == (first[1].target, first[1].contrast):
                again.append((number, first[0], row))
            elif _contradict(row, first[1], loss):
                against.append((number, first[0], row, first[1]))
    if again:
        number, earlier, row = again[0]
        yield (
            f"{show_path(path)}:{number}: the same edit stands in line {earlier}: "
            f"{show_value(row.prompt)}.{_and_others([n for n, *_ in again[1:]])}"
        )
    if against:
        number, earlier, row, other = against[0]
        yield (
            f"{show_path(path)}:{number}: {show_value(row.prompt)} should be followed by "
            f"{show_value(row.target)}, and by {show_value(other.target)} in line {earlier}: these "
            f"edits contradict each other.{_and_others([n for n, *_ in against[1:]])}"
        )
