import json
import multiprocessing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.damaged_studies import DAMAGES
from tests.support.made_up_records import answer, failed, record
from tuner.errors import ClusterError, ConfigError
from tuner.search.config import StudyConfig
from tuner.search.objective import Objective
from tuner.search.proposer import Proposer
from tuner.search.ray.searcher import JOB, LedgerSearcher
from tuner.search.ray.worker_failures import WorkerFailures
from tuner.search.space_file import load_space
from tuner.search.storage.folder import StudyFolder, TrialFile
from tuner.search.storage.ledger import Ledger, is_driven
from tuner.trial.records import TrialRecord, TrialState

SPACE = load_space("lora")
CONFIG = StudyConfig(task="t", trials=4, sampler="random")
ASKED = {**CONFIG.identity, "uid": "u"}


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


@pytest.fixture
def ledger(folder: StudyFolder) -> Iterator[Ledger]:
    with Ledger.drive(folder, "study") as opened:
        opened.set_definition(ASKED)
        yield opened


def searcher(
    ledger: Ledger, constraints: Sequence[str] = (), lost: Collection[str] = ()
) -> LedgerSearcher:
    proposer = Proposer(SPACE, CONFIG.sampler, seed=0)
    return LedgerSearcher(
        ledger,
        SPACE,
        CONFIG,
        proposer,
        constraints=constraints,
        deaths=WorkerFailures(lambda node: node in lost, known_within_s=0.0),
        on_change=lambda number: None,
    )


def work(ledger: Ledger, job: object, found: TrialRecord | None, crash: str | None = None) -> int:
    """Leave what a worker leaves when a trial has ended."""
    assert isinstance(job, dict)
    work = json.loads(job[JOB])
    folder = ledger.folder
    file = TrialFile(
        uid="u",
        number=work["number"],
        parameters=work["parameters"],
        record=found,
        crash=crash,
    )
    with folder.publishing(file):
        pass
    return file.number


GOOD = record(*(answer(0.5, at=epsilon / 2, epsilon=epsilon) for epsilon in (1e-3, 1e-4, 1e-5)))


def test_a_study_runs_each_number_once(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    for index, found in enumerate((GOOD, failed(), GOOD, GOOD)):
        job = bridge.suggest(f"tune-{index}")
        work(ledger, job, found)
        bridge.on_trial_complete(f"tune-{index}", {"done": True})
        bridge.on_trial_complete(f"tune-{index}", {"done": True})  # a repeat changes nothing
    assert bridge.suggest("tune-5") == "FINISHED"
    entries = ledger.trials()
    assert [entry.number for entry in entries] == [0, 1, 2, 3]
    states = [str(entry.state) for entry in entries]
    assert states == ["completed", "failed", "completed", "completed"]
    assert entries[1].failure == "The loss is NaN."
    assert all(entry.record is not None for entry in entries)


def test_the_sampler_is_told_value_and_constraint_of_every_trial(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    for index, found in enumerate((GOOD, failed())):
        work(ledger, bridge.suggest(str(index)), found)
        bridge.on_trial_complete(str(index), {"done": True})
    good, bad = ledger.history()
    assert good.value == 0.5
    assert list(good.constraints) == ["budget"] == list(bad.constraints)
    assert good.constraints["budget"] < 0 < bad.constraints["budget"] == 5


def test_every_constraint_of_a_study_is_told_under_its_name(ledger: Ledger) -> None:
    names = ["hard_negative_loss.rise", "exact.floor"]
    kept = {"hard_negative_loss.rise": -0.5, "exact.floor": 0.25}
    good = record(answer(0.5, at=1e-4, violations=kept))
    bridge = searcher(ledger, names)
    for index, found in enumerate((good, failed())):
        work(ledger, bridge.suggest(str(index)), found)
        bridge.on_trial_complete(str(index), {"done": True})
    done, bad = ledger.history()
    assert list(done.constraints) == ["budget", *names] == list(bad.constraints)
    assert {name: done.constraints[name] for name in names} == kept
    assert set(bad.constraints.values()) == {5.0}


def test_a_bundle_belongs_to_the_budget_itself_not_to_six_digits_of_it(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    number = work(ledger, bridge.suggest("0"), GOOD)
    bridge.on_trial_complete("0", {"done": True})
    budgets = (1 / 150, 0.012345678, 0.01234567)
    for epsilon in budgets:
        ledger.folder.bundle(number, epsilon).mkdir()
    (ledger.folder.trial(number) / "notes").mkdir()  # a user's own
    found = dict(ledger.trial(number).bundles)
    assert set(found) == set(budgets)
    assert found[1 / 150] == ledger.folder.bundle(number, 1 / 150)


@pytest.mark.parametrize("content", DAMAGES)
def test_a_trial_whose_record_is_torn_is_run_again_under_its_number(
    folder: StudyFolder, content: bytes
) -> None:
    with Ledger.drive(folder, "study") as ledger:
        ledger.set_definition(ASKED)
        bridge = searcher(ledger)
        jobs = [bridge.suggest(str(index)) for index in range(2)]
        for index, job in enumerate(jobs):
            work(ledger, job, GOOD)
            bridge.on_trial_complete(str(index), {"done": True})
        told = ledger.history()
    (folder.trial(0) / "record.json").write_bytes(content)
    with Ledger.drive(folder, "study") as ledger:
        assert ledger.running() == [0]
        assert ledger.trial(0).record is None
        bridge = searcher(ledger)
        assert bridge.suggest("again") == jobs[0]
        work(ledger, jobs[0], GOOD)
        bridge.on_trial_complete("again", {"done": True})
        assert ledger.running() == []
        assert ledger.trial(0).record == GOOD
        assert [one.number for one in ledger.history()] == [one.number for one in told] == [0, 1]
        assert ledger.history()[0].datetime_complete == told[0].datetime_complete


def test_bugs_fail_without_teaching_the_sampler(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    work(ledger, bridge.suggest("0"), None, crash="TypeError: oops (x.py:3)")
    bridge.on_trial_complete("0", {"done": True})
    assert ledger.history()[0].state.name == "FAIL"
    assert ledger.trial(0).failure == "TypeError: oops (x.py:3)"


def test_a_trial_whose_worker_died_is_run_again_and_given_up_in_the_end(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    first = bridge.suggest("a")
    for name in ("a", "b"):
        bridge.on_trial_complete(name, None, error=True)
        assert ledger.trial(0).state is TrialState.RUNNING
        assert bridge.suggest("b" if name == "a" else "c") == first
    bridge.on_trial_complete("c", None, error=True)
    assert ledger.trial(0).failure == (
        "Its worker died 3 times. Where memory runs out the system ends workers; fewer at a time "
        "need less."
    )


def test_a_lost_node_is_not_held_against_the_trials_that_ran_on_it(ledger: Ledger) -> None:
    lost: set[str] = set()
    bridge = searcher(ledger, lost=lost)
    first = bridge.suggest("0")
    for again in range(1, 6):  # more often than workers may die
        ledger.folder.take_place(0, f"spot-{again}")
        lost.add(f"spot-{again}")
        bridge.on_trial_complete(str(again - 1), None, error=True)
        assert ledger.trial(0).state is TrialState.RUNNING
        assert bridge.suggest(str(again)) == first
        # What was noted of the last attempt says nothing about this one.
        assert ledger.folder.place_of(0) is None
    for again in range(6, 9):
        ledger.folder.take_place(0, "a node that lives")
        bridge.on_trial_complete(str(again - 1), None, error=True)
        if again < 8:
            bridge.suggest(str(again))
    assert ledger.trial(0).failure == (
        "Its worker died 3 times. Where memory runs out the system ends workers; fewer at a time "
        "need less."
    )


def test_what_ran_on_a_lost_ray_is_adopted_or_run_again_and_nobody_is_to_blame(
    ledger: Ledger,
) -> None:
    bridge = searcher(ledger)
    first = bridge.suggest("0")
    second = bridge.suggest("1")
    for again in range(2, 8):  # more often than workers may die
        if again == 4:
            work(ledger, second, GOOD)  # it had ended when Ray was lost
        bridge.take_back()
        assert bridge.suggest(str(again)) == first
        if again < 4:
            assert bridge.suggest(f"second-{again}") == second
    assert ledger.trial(0).state is TrialState.RUNNING
    assert ledger.trial(1).state is TrialState.COMPLETED
    work(ledger, first, GOOD)
    bridge.on_trial_complete("0", {"done": True})  # of a Ray that is gone
    assert ledger.trial(0).state is TrialState.RUNNING
    bridge.on_trial_complete("7", {"done": True})
    assert [entry.number for entry in ledger.trials()] == [0, 1]
    assert ledger.trial(0).state is TrialState.COMPLETED


def test_the_search_waits_for_the_last_trial_in_case_its_worker_dies(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    jobs = [bridge.suggest(str(index)) for index in range(4)]
    assert bridge.suggest("x") is None
    bridge.on_trial_complete("3", None, error=True)
    assert bridge.suggest("y") == jobs[3]
    for name, job in (("0", jobs[0]), ("1", jobs[1]), ("2", jobs[2]), ("y", jobs[3])):
        work(ledger, job, GOOD)
        bridge.on_trial_complete(name, {"done": True})
    assert bridge.suggest("z") == "FINISHED"


def test_a_dead_worker_that_had_finished_is_believed(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    work(ledger, bridge.suggest("0"), GOOD)
    bridge.on_trial_complete("0", None, error=True)
    assert ledger.trial(0).state is TrialState.COMPLETED


def test_an_abort_leaves_the_trial_for_later(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    first = bridge.suggest("0")
    bridge.on_trial_complete("0", {"done": True, "abort": "no model"})
    assert bridge.abort == "no model"
    assert bridge.suggest("1") == "FINISHED"
    assert ledger.running() == [0]
    assert searcher(ledger).suggest("2") == first


def test_recovery_adopts_what_was_finished_and_runs_the_rest_again(folder: StudyFolder) -> None:
    with Ledger.drive(folder, "study") as ledger:
        ledger.set_definition(ASKED)
        bridge = searcher(ledger)
        jobs = [bridge.suggest(str(index)) for index in range(3)]
        work(ledger, jobs[0], GOOD)
        bridge.on_trial_complete("0", {"done": True})
        work(ledger, jobs[1], GOOD)  # killed before it was told
    with Ledger.drive(folder, "study") as ledger:
        bridge = searcher(ledger)
        assert [str(one.state) for one in ledger.trials()] == ["completed", "completed", "running"]
        assert bridge.suggest("a") == jobs[2]
        fourth = bridge.suggest("b")
        assert isinstance(fourth, dict)
        assert json.loads(fourth[JOB])["number"] == 3
        assert bridge.suggest("c") is None


def test_recovery_interrupted_between_constraint_and_value_is_repeated(ledger: Ledger) -> None:
    bridge = searcher(ledger)
    job = bridge.suggest("0")
    trial = ledger._running(0)
    assert trial is not None
    trial.set_constraint("budget", -0.5)  # and then the driver was killed
    work(ledger, job, GOOD)
    searcher(ledger)
    found = ledger.history()[0]
    assert found.value == 0.5
    assert found.constraints == {"budget": -0.5}


def test_a_continued_study_proposes_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    def run(folder: StudyFolder, reopen: bool) -> list[dict[str, object]]:
        for _ in range(4 if reopen else 1):
            with Ledger.drive(folder, "study") as ledger:
                ledger.set_definition(ASKED)
                bridge = searcher(ledger)
                for index in range(1 if reopen else 4):
                    work(ledger, bridge.suggest(str(index)), GOOD)
                    bridge.on_trial_complete(str(index), {"done": True})
                found = [dict(one.params) for one in ledger.history()]
        return found

    assert run(StudyFolder(tmp_path / "a"), True) == run(StudyFolder(tmp_path / "b"), False)


@pytest.mark.parametrize("uid", ["u", "somebody else"])
def test_only_the_very_trial_is_adopted(ledger: Ledger, uid: str) -> None:
    job = searcher(ledger).suggest("0")
    assert isinstance(job, dict)
    parameters = json.loads(job[JOB])["parameters"]
    file = TrialFile(uid=uid, number=0, parameters=parameters, record=GOOD)
    with ledger.folder.publishing(file):
        pass
    assert (ledger.left_behind(0) is not None) == (uid == "u")


def test_a_torn_line_at_the_end_of_the_journal_is_cut_off(folder: StudyFolder) -> None:
    with Ledger.drive(folder, "study") as ledger:
        ledger.set_definition(ASKED)
        ledger.add(Proposer(SPACE, "random", seed=0).propose([], 0), SPACE)
    with folder.journal.open("ab") as file:
        file.write(b'{"op_code": 4, "study')
    assert len(Ledger.read(folder, "study").trials()) == 1
    with Ledger.drive(folder, "study") as ledger:
        ledger.complete(0, Objective(value=1.0, constraints={"budget": -1.0}))
    assert Ledger.read(folder, "study").history()[0].value == 1.0


def test_every_cut_of_the_journal_is_a_study_that_can_go_on(folder: StudyFolder) -> None:
    """A kill can end the journal after any of its lines."""
    with Ledger.drive(folder, "study") as ledger:
        ledger.set_definition(ASKED)
        bridge = searcher(ledger)
        for index in range(4):
            work(ledger, bridge.suggest(str(index)), GOOD)
            bridge.on_trial_complete(str(index), {"done": True})
        expected = [(one.params, one.value, one.constraints) for one in ledger.history()]
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    for length in range(2, len(lines)):
        folder.journal.write_bytes(b"".join(lines[:length]))
        with Ledger.drive(folder, "study") as ledger:
            ledger.set_definition(ASKED)
            bridge = searcher(ledger)
            while isinstance(job := bridge.suggest("x"), dict):
                work(ledger, job, GOOD)
                bridge.on_trial_complete("x", {"done": True})
            found = [(one.params, one.value, one.constraints) for one in ledger.history()]
        assert found == expected


def _hold(root: Path, ready: object, end: object) -> None:
    with Ledger.drive(StudyFolder(root), "study"):
        ready.set()  # type: ignore[attr-defined]
        end.wait(60)  # type: ignore[attr-defined]


def test_a_second_driver_is_refused_until_the_first_is_gone(folder: StudyFolder) -> None:
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder.root, ready, end))
    holder.start()
    try:
        assert ready.wait(300)
        assert is_driven(folder, "study", None)
        with pytest.raises(ConfigError, match=rf"being run by process {holder.pid}"):
            Ledger.drive(folder, "study").__enter__()
    finally:
        holder.kill()
        holder.join()
    assert not is_driven(folder, "study", None)
    with Ledger.drive(folder, "study"):
        pass


def test_reading_a_study_that_nobody_runs_shows_its_running_trials_as_waiting(
    folder: StudyFolder,
) -> None:
    with Ledger.drive(folder, "study") as ledger:
        ledger.set_definition(ASKED)
        searcher(ledger).suggest("0")
        assert ledger.trial(0).state is TrialState.RUNNING
    assert Ledger.read(folder, "study").trial(0).state is TrialState.WAITING


def test_a_missing_study_and_a_missing_database_are_explained(folder: StudyFolder) -> None:
    with pytest.raises(ConfigError, match="no study"):
        Ledger.read(folder, "study")
    config = StudyConfig.model_validate(
        {"task": "t", "storage": "postgresql://me:hush@127.0.0.1:1/db"}
    )
    with (
        pytest.raises(ClusterError, match="has been away for 0 s") as error,
        Ledger.drive(folder, "study", config.storage, patience_s=0),
    ):
        pass
    assert "hush" not in str(error.value)


def test_a_database_can_hold_the_ledger(folder: StudyFolder, tmp_path: Path) -> None:
    config = StudyConfig.model_validate({"task": "t", "storage": f"sqlite:///{tmp_path}/l.db"})
    with Ledger.drive(folder, "study", config.storage) as ledger:
        ledger.set_definition(ASKED)
        bridge = searcher(ledger)
        work(ledger, bridge.suggest("0"), GOOD)
        bridge.on_trial_complete("0", {"done": True})
    found = Ledger.read(folder, "study", config.storage)
    assert found.history()[0].constraints["budget"] < 0
