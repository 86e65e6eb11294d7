"""A file holds one idea: none is so long that a reader has to search in it."""

from tests.support.clone import ROOT

MOST_LINES = 450
DATA = {"world/problems.py"}


def test_no_file_is_too_long() -> None:
    package = ROOT / "tuner"
    lines = {
        path.relative_to(package).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in package.rglob("*.py")
    }
    assert len(lines) > 200
    assert {name for name, count in lines.items() if count > MOST_LINES} <= DATA
