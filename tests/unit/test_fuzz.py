"""Of every kind of input some changed ones are read; `python -m tests.fuzz` reads thousands."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.kinds import Kind, all_kinds
from tests.fuzz.run import Outcome, run

_KINDS = {kind.name: kind for kind in all_kinds()}


@pytest.fixture(scope="module", params=sorted(_KINDS))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Path]:
    """A kind, and the folder with its valid input."""
    kind = _KINDS[request.param]
    folder = tmp_path_factory.mktemp("fuzz") / "input"
    folder.mkdir()
    kind.make(folder)
    return kind, folder


def test_what_is_not_changed_is_accepted(made: tuple[Kind, Path]) -> None:
    kind, folder = made
    result = run(kind.valid(folder))
    kind.restore(folder)
    assert result.outcome is Outcome.ACCEPTED, result.said


@settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32))
def test_what_is_changed_is_accepted_or_refused_in_words(
    made: tuple[Kind, Path], seed: int
) -> None:
    kind, folder = made
    how, read = kind.changed(folder, Random(seed))
    try:
        result = run(read)
    finally:
        kind.restore(folder)
    assert not result.outcome.is_failure, f"{how}: {result.outcome}: {result.said}"
