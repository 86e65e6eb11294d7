"""How many edits a split gets, and where their files are looked for."""

from pathlib import Path

import pytest

from tuner.errors import ConfigError, TaskError
from tuner.importers.by_hand import SERAC_QA, SERAC_QA_HARD, published_by_hand
from tuner.importers.scoped_edits import EditCounts


def test_half_of_the_records_are_edits_unless_asked_for() -> None:
    counts = EditCounts(val=7)
    assert counts.of("test", 100, "file") == 50
    assert counts.of("test", 5000, "file") == 1000
    assert counts.of("train", 50_000, "file") == 10_000
    assert counts.of("val", 8, "file") == 7


def test_records_must_be_left_for_rows_out_of_scope() -> None:
    with pytest.raises(ConfigError, match=r"the validation split needs more than 7 .* there are 7"):
        EditCounts(val=7).of("val", 7, "file")
    with pytest.raises(ConfigError, match="the test split needs at least two records"):
        EditCounts().of("test", 1, "file")


@pytest.mark.parametrize("below", ["", "zsre", "data/zsre"])
def test_files_are_found_in_the_archive_or_in_a_folder_of_their_own(
    below: str, tmp_path: Path
) -> None:
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").touch()
    assert SERAC_QA.find(tmp_path, ["a.txt"]) == [folder / "a.txt"]
    with pytest.raises(TaskError, match=r"missing: b\.txt, c\.txt\. To be had: the archive"):
        SERAC_QA_HARD.find(tmp_path, ["a.txt", "b.txt", "c.txt"])


def test_each_benchmark_says_where_it_is_from() -> None:
    assert len({one.name for one in published_by_hand()}) == 4
    assert all("arXiv:2206.06520" in one.source for one in published_by_hand())
