"""Phrases that read oddly are kept out of what users and engineers read."""

import re

import pytest

from tests.support.clone import ROOT

ODD = {
    r"(?<!there )(?<!There )\b(?:is|are|was) no "
    r"(?!longer\b|more\b|such\b|worse\b|other\b|better\b)[A-Za-z]+": "write `is not a …`",
    r"\bto be had\b": "write `available`",
    r"\bin the place of\b": "write `instead of`",
    r"\bgone on from\b": "write `continued`",
    r"\bfor for ever\b": "write `indefinitely`",
    r"\bholds? (?:its|his|her) hand\b": "write `free-running`",
    r"\bstands? (?:behind|beside|before) (?:it|them)\b": "say what it does",
}
FILES = [
    *sorted((ROOT / "tuner").rglob("*.py")),
    *sorted((ROOT / "search_spaces").glob("*.yaml")),
    ROOT / "README.md",
    ROOT / "k8s/README.md",
]


@pytest.mark.parametrize("pattern", ODD, ids=ODD.values())
def test_no_text_reads_oddly(pattern: str) -> None:
    odd = re.compile(pattern)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        # The built-in world's text is data.
        if "world" not in path.relative_to(ROOT).parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if odd.search(line)
    ]
    assert found == [], ODD[pattern]
