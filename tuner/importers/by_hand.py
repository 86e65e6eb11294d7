"""Published benchmarks that must be fetched by hand, and where their files lie then."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tuner.errors import TaskError
from tuner.files.text_file import is_file
from tuner.validation import show_path

_SERAC = "Mitchell et al. 2022 (arXiv:2206.06520), https://github.com/eric-mitchell/serac"
_ARCHIVE = "the archive on Google Drive that the README of github.com/eric-mitchell/serac links"
_ZSRE = "Levy et al. 2017 (arXiv:1706.04115)"


@final
@dataclass(frozen=True)
class ByHand:
    """A benchmark whose files are published where no program can fetch them.

    Attributes:
        name: That of its importer.
        folder: Where its files lie in the published archive.
        where: What to get.
    """

    name: str
    about: str
    folder: str
    files: tuple[str, ...]
    source: str
    licence: str
    where: str = f"{_ARCHIVE}; give its folder, once unpacked"

    def find(self, given: Path, files: Sequence[str]) -> list[Path]:
        """Return the paths of some of its files, in the folder given or where the archive has them.

        Raises:
            TaskError: one of them is missing.
        """
        places = [given / below for below in ("", Path(self.folder).name, self.folder)]
        place = next((p for p in places if any(is_file(p / file) for file in files)), given)
        missing = [file for file in files if not os.path.lexists(place / file)]
        if missing:
            raise TaskError(
                f"{show_path(place)}: missing: {', '.join(missing)}. To be had: {self.where}."
            )
        return [place / file for file in files]


_STRUCTURED = "structured_zeroshot-{train,dev,test}-new_annotated_final.jsonl"

SERAC_QA = ByHand(
    "serac_qa",
    "SERAC's questions: zsRE with back-translated rephrases.",
    "data/zsre",
    (_STRUCTURED,),
    f"SERAC's QA, {_SERAC}; from zsRE, {_ZSRE}, with rephrases by De Cao et al. 2021 "
    "(arXiv:2104.08164)",
    "Not stated with the files",
)
SERAC_QA_HARD = ByHand(
    "serac_qa_hard",
    "The same with implied questions, True/False questions and hard negatives.",
    "data/zsre",
    (_STRUCTURED, "impl_{train,dev,test}.json", "zsre_yn_{train,dev,test}.txt"),
    f"SERAC's QA-hard, {_SERAC}; from zsRE, {_ZSRE}, with rephrases by De Cao et al. 2021 "
    "(arXiv:2104.08164)",
    "Not stated with the files",
)
SERAC_FACT_CHECKING = ByHand(
    "serac_fact_checking",
    "SERAC's fact checking: VitaminC's evidence and claims.",
    "data/vitaminc",
    ("{train,dev,test}.jsonl",),
    f"SERAC's FC, {_SERAC}; from VitaminC, Schuster et al. 2021 (arXiv:2103.08541)",
    "Not stated with the files; VitaminC's evidence is Wikipedia's, CC BY-SA",
    f"{_ARCHIVE}, or VitaminC itself; give its folder, once unpacked",
)
SERAC_DIALOGUE = ByHand(
    "serac_dialogue",
    "SERAC's ConvSent: opinions about topics, by BlenderBot.",
    "data/sentiment",
    ("blender_{train,val,test}.json",),
    f"SERAC's ConvSent, {_SERAC}",
    "Not stated with the files",
)


def published_by_hand() -> tuple[ByHand, ...]:
    """Return every benchmark that tuner imports and cannot fetch."""
    return (SERAC_QA, SERAC_QA_HARD, SERAC_FACT_CHECKING, SERAC_DIALOGUE)
