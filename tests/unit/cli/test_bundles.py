"""Where the verbs find a bundle."""

from pathlib import Path

import pytest

from tuner.cli.bundles import bundle_folder
from tuner.errors import ConfigError
from tuner.search.storage.folder import StudyFolder


def test_a_winner_is_found_by_all_digits_of_its_budget(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    for epsilon in (1 / 150, 1e-5):
        study.winner(epsilon).mkdir(parents=True)
        (study.winner(epsilon) / "delta.json").touch()
    (study.root / "winners" / "0-mine").mkdir()
    (study.root / "winners" / "0-mine" / "delta.json").touch()
    assert bundle_folder("study", 1 / 150, tmp_path) == study.winner(1 / 150)
    assert bundle_folder("study", 1e-5, tmp_path) == study.root / "winners" / "1e-05"
    with pytest.raises(ConfigError, match=r"it has 0\.006666666666666667, 1e-05\.") as refused:
        bundle_folder("study", 0.00666667, tmp_path)
    assert "no winner for 0.00666667" in str(refused.value)


@pytest.mark.parametrize("name", ["nothing", "x/" * 3000, "a\0b"])
def test_a_name_of_nothing_is_told_in_words(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a bundle's folder nor a study") as refused:
        bundle_folder(name, None, tmp_path)
    assert len(str(refused.value)) < 1000
