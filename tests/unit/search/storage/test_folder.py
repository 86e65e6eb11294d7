import os
from pathlib import Path

import pytest

from tests.support.damaged_studies import DAMAGES
from tests.support.made_up_records import answer, record
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Certificate
from tuner.evaluation.scores import Scores
from tuner.search.storage.folder import Holder, StudyFolder, TrialFile, read_whole
from tuner.trial.records import SeedResult, StudyResultRecord


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    made = StudyFolder(tmp_path / "study")
    made.root.mkdir()
    return made


@pytest.mark.parametrize("content", DAMAGES)
@pytest.mark.parametrize("kind", [TrialFile, Certificate, SeedResult, Scores, StudyResultRecord])
def test_a_torn_file_counts_as_none(tmp_path: Path, content: bytes, kind: type) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert read_whole(path, kind) is None


def test_what_is_no_file_counts_as_none_and_nobody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "absent", "x" * 300):
        assert read_whole(tmp_path / name, TrialFile) is None


@pytest.mark.parametrize("content", DAMAGES)
def test_a_torn_claim_of_the_base_says_how_to_repair_it(
    folder: StudyFolder, content: bytes
) -> None:
    folder.claim_base("weights", "text")
    folder.base.write_bytes(content)
    for act in (folder.base_fingerprint, lambda: folder.claim_base("weights", "text")):
        with pytest.raises(
            ConfigError, match=r"base\.json.*delete the file: the next `tuner search`"
        ):
            act()
    folder.base.unlink()
    folder.claim_base("weights", "text")
    assert folder.base_fingerprint() == "weights"
    with pytest.raises(ConfigError, match="other base weights"):
        folder.claim_base("others", "text")
    with pytest.raises(ConfigError, match="other general text"):
        folder.claim_base("weights", "another")


@pytest.mark.parametrize("content", DAMAGES)
def test_a_torn_claim_of_a_companion_says_how_to_repair_it(
    folder: StudyFolder, content: bytes
) -> None:
    folder.claim_companions({"small": "weights"})
    (path,) = folder.companions.iterdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path.name}.*delete the file"):
        folder.claim_companions({"small": "weights"})


def test_who_runs_a_study_is_known_while_the_file_that_says_so_is_whole(
    folder: StudyFolder,
) -> None:
    folder.hold()
    holder = folder.read_holder()
    assert holder is not None
    assert holder.pid == os.getpid()
    for content in DAMAGES:
        folder.holder.write_bytes(content)
        assert folder.read_holder() is None
    folder.holder.write_text('{"pid": 7, "host": "far"}')
    assert str(folder.read_holder()) == "process 7 on far"
    assert Holder(pid=7, host="far") == folder.read_holder()
    folder.let_go()
    assert folder.read_holder() is None


def test_a_second_worker_of_a_trial_leaves_what_the_first_has_left(folder: StudyFolder) -> None:
    file = TrialFile(uid="u", number=3, parameters={"a": 1}, record=record(answer(0.5, at=1e-4)))
    for note in ("first", "second"):
        with folder.publishing(file) as place:
            (place / "note").write_text(note)
    assert (folder.trial(3) / "note").read_text() == "first"
    assert folder.read_trial("u", 3, {"a": 1}) == file
    assert os.listdir(folder.trials) == ["3"]


def test_only_drafts_of_ours_that_nobody_writes_are_cleared(folder: StudyFolder) -> None:
    old = [
        folder.root / ".report.html.draft",
        folder.root / "winners" / ".0.001.4711.part",
        folder.root / "confirm" / "0.001" / f".3.json-{'a' * 32}",
        folder.root / "test" / f".base.json-{'b' * 32}",
        folder.trials / f".7-{'c' * 32}",
    ]
    kept = [
        folder.root / ".gitignore",
        folder.root / "winners" / ".notes.part",
        folder.trials / "7",
        folder.root / "test" / f".new.json-{'d' * 32}",
    ]
    for path in (*old, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".part", "") and path.name != ".gitignore":
            path.mkdir()
            (path / "inside").write_text("x")
        else:
            path.write_text("x")
        if path != kept[-1]:  # the last one may be somebody's who writes it now
            os.utime(path, (0, 0))
    folder.clear_drafts()
    assert [path for path in old if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
