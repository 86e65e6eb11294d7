import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Run
from tests.support.made_up_records import answer, record
from tests.support.small_disk import python_on_small_disk
from tuner.errors import ClusterError, ConfigError
from tuner.search.config import StudyConfig
from tuner.search.objective import Objective
from tuner.search.space_file import load_space
from tuner.search.storage.folder import StudyFolder, TrialFile
from tuner.search.storage.journal import repair
from tuner.search.storage.ledger import Ledger
from tuner.trial.records import TrialState

SPACE = load_space("lora")
ASKED = {**StudyConfig(task="t", trials=4).identity, "uid": "u"}
GOOD = record(*(answer(0.5, at=epsilon / 2, epsilon=epsilon) for epsilon in (1e-3, 1e-4, 1e-5)))
# Trial 3 runs and has left nothing; trial 2 has ended, but the ledger was not told.
ENDED = (0, 1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    made = StudyFolder(tmp_path / "study")
    with Ledger.drive(made, "study") as ledger:
        ledger.set_definition(ASKED)
        for number in range(4):
            parameters = _parameters(number)
            assert ledger.add(parameters, SPACE) == number
            if number in ENDED:
                file = TrialFile(uid="u", number=number, parameters=parameters, record=GOOD)
                with made.publishing(file):
                    pass
        for number in (1, 0):  # two workers: they end in another order than they began
            ledger.complete(number, Objective(value=0.5, constraints={"budget": -1.0}))
    return made


def _parameters(number: int) -> dict[str, Any]:
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    found = {}
    for name, distribution in SPACE.active({}).items():
        value: Any = getattr(distribution, "low", None)
        found[name] = distribution.choices[0] if value is None else value
    return {**found, "learning_rate": rates[number]}


def _half(line: bytes, after: bytes) -> bytes:
    return line[: len(line) // 2] + b"\n" + after


def _half_and_the_next(line: bytes, after: bytes) -> bytes:
    return line[: len(line) // 2] + after


def _zeros(line: bytes, after: bytes) -> bytes:
    return bytes(len(line)) + b"\n" + after


def _junk(line: bytes, after: bytes) -> bytes:
    return b"\xff[[[{]\n" + after


@pytest.mark.parametrize("damage", [_half, _half_and_the_next, _zeros, _junk])
def test_any_damaged_line_is_mended_so_that_each_result_stays_with_its_trial(
    folder: StudyFolder, damage: Callable[[bytes, bytes], bytes]
) -> None:
    whole = folder.journal.read_bytes()
    lines = whole.splitlines()
    kinds = [json.loads(line)["op_code"] for line in lines]
    for place, line in enumerate(lines):
        before = b"".join(line + b"\n" for line in lines[:place])
        after = b"".join(line + b"\n" for line in lines[place + 1 :])
        folder.journal.write_bytes(before + damage(line, after))
        if place < len(lines) - 1 or damage is not _half_and_the_next:
            with pytest.raises(
                ClusterError, match=rf":{place + 1}: is damaged.*tuner repair study"
            ):
                Ledger.read(folder, "study")
            done = repair(folder, "study")
            assert done.backup is not None
            assert done.kept == len(lines) - 1
            began = kinds[:place].count(4)
            assert done.restored == ((began,) if kinds[place] == 4 and began in ENDED else ())
            assert done.lost in ((), (3,))
            if began < 3 or kinds[place] != 4:
                assert done.lost == ()
        with Ledger.drive(folder, "study") as ledger:
            history = ledger.history()
            known = 3 if kinds[place] == 4 and kinds[:place].count(4) == 3 else 4
            assert [one.number for one in history][:known] == list(range(known))
            for trial in history[:known]:
                assert trial.params == _parameters(trial.number)
            if kinds[place] != 2:  # what was asked: the trials' files know whose they are
                assert set(ledger.running()) <= {0, 1, 2, 3}
                assert all(ledger.left_behind(number) is not None for number in ENDED)
        folder.journal.write_bytes(whole)


def test_a_whole_journal_is_left_alone_also_with_a_line_cut_short_at_its_end(
    folder: StudyFolder,
) -> None:
    with folder.journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    content = folder.journal.read_bytes()
    assert repair(folder, "study").backup is None
    assert folder.journal.read_bytes() == content
    assert len(Ledger.read(folder, "study").trials()) == 4


def test_the_journal_as_it_was_is_kept(folder: StudyFolder) -> None:
    for number in (1, 2):
        lines = folder.journal.read_bytes().splitlines(keepends=True)
        folder.journal.write_bytes(b"".join([*lines[:-1], b"junk\n"]))
        damaged = folder.journal.read_bytes()
        done = repair(folder, "study")
        assert done.backup == folder.root / f"ledger.journal.damaged-{number}"
        assert done.backup.read_bytes() == damaged


def test_a_study_without_a_journal_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no ledger"):
        repair(StudyFolder(tmp_path), "study")


def test_the_verb_says_what_it_did(folder: StudyFolder, run: Run) -> None:
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    torn = [index for index, line in enumerate(lines) if b'"op_code":4' in line][1]
    folder.journal.write_bytes(
        b"".join([*lines[:torn], lines[torn][:50] + b"\n", *lines[torn + 1 :]])
    )
    place = ("--folder", str(folder.root.parent))
    assert "tuner repair study" in run("status", "study", *place)[2]
    said = run("repair", "study", *place)[1]
    assert f"damaged lines: {torn + 1}" in said
    assert "Made again from their own files: #1" in said
    assert "nothing to repair" in run("repair", "study", *place)[1]
    states = [entry.state for entry in Ledger.read(folder, "study").trials()]
    assert states[:2] == [TrialState.COMPLETED, TrialState.COMPLETED]


def test_a_full_disk_leaves_no_part_of_an_act_and_the_ledger_goes_on_once_there_is_room(
    tmp_path: Path,
) -> None:
    script = """
import sys
from pathlib import Path
from tuner.errors import DiskError
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger
from tuner.search.space_file import load_space
space = load_space("lora")
parameters = {"learning_rate": 1e-3}
for name, one in space.active({}).items():
    parameters.setdefault(name, one.low if hasattr(one, "low") else one.choices[0])
place = Path(sys.argv[1])
folder, filler = StudyFolder(place / "study"), place / "filler"
filler.write_bytes(bytes(50_000))
added = 0
try:
    with Ledger.drive(folder, "study") as ledger:
        while True:
            ledger.add(parameters, space)
            added += 1
except DiskError as error:
    print("full" in str(error), added > 2)
filler.unlink()
with Ledger.drive(folder, "study") as ledger:
    print(ledger.add(parameters, space) == added, len(ledger.history()) == added + 1)
"""
    found = python_on_small_disk(tmp_path / "disk", "96k", ["-c", script, str(tmp_path / "disk")])
    assert found.stdout.splitlines() == ["True True", "True True"], found.stderr
