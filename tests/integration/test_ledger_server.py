"""A ledger in a real PostgreSQL: waited for, written once, by one driver."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, PoolProxiedConnection, event
from tenacity import nap

from tests.support.postgres_server import PostgresServer
from tests.support.tcp_proxy import Cut, TcpProxy
from tuner.errors import ClusterError, ConfigError
from tuner.search.config import StudyConfig
from tuner.search.objective import Objective
from tuner.search.proposer import Proposer
from tuner.search.space_file import load_space
from tuner.search.storage import session
from tuner.search.storage.database import Database
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger, is_driven
from tuner.trial.records import TrialState

SPACE = load_space("lora")
ASKED = {**StudyConfig(task="t", trials=4).identity, "uid": "u"}
GOOD = Objective(value=0.5, constraints={"budget": -1.0})
PARAMETERS = Proposer(SPACE, "random", seed=0).propose([], 0)

DRIVER = """
import sys
from pathlib import Path
from pydantic import SecretStr
from sqlalchemy import PoolProxiedConnection
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger

folder, name, url = sys.argv[1:]
with Ledger.drive(StudyFolder(Path(folder)), name, SecretStr(url)):
    print("driving", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.end()


@pytest.fixture
def url(server: PostgresServer) -> SecretStr:
    return SecretStr(server.url())


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


def test_the_search_waits_for_a_server_that_is_away_and_goes_on(
    server: PostgresServer,
    url: SecretStr,
    folder: StudyFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Ledger.drive(folder, "waits", url) as ledger:
        ledger.set_definition(ASKED)
        first = ledger.add(PARAMETERS, SPACE)
        server.stop()
        back = threading.Timer(3, server.start)
        back.start()
        second = ledger.add(PARAMETERS, SPACE)
        ledger.complete(first, GOOD)
        ledger.complete(second, GOOD)
        back.join()
        assert [entry.state for entry in ledger.trials()] == [TrialState.COMPLETED] * 2
        assert (first, second) == (0, 1)
    assert "database is away" in caplog.text
    assert server.password not in caplog.text
    found = Ledger.read(StudyFolder(folder.root), "waits", url)
    assert [one.number for one in found.history()] == [0, 1]
    assert found.definition == ASKED


def test_studies_that_begin_at_once_on_an_empty_server_share_its_tables(
    server: PostgresServer, tmp_path: Path
) -> None:
    server.add_database("empty")
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path / name), name, server.url("empty")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b", "c", "d")
    ]
    for driver in drivers:
        assert driver.communicate("", timeout=900)[0] == "driving\n"


def test_a_write_whose_answer_is_lost_is_not_done_twice(
    url: SecretStr, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks just after a commit, the worst moment, again and again."""
    with Ledger.drive(folder, "answers", url) as ledger:
        ledger.set_definition(ASKED)
        dialect = ledger._study._storage._backend.engine.dialect  # type: ignore[attr-defined]
        commit = dialect.do_commit
        chance, broken = random.Random(0), 0

        def kept_but_not_told(connection: PoolProxiedConnection) -> None:
            nonlocal broken
            commit(connection)
            if chance.random() < 0.3:
                broken += 1
                connection.dbapi_connection.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(dialect, "do_commit", kept_but_not_told)
        # The pauses between attempts are not what is tested.
        monkeypatch.setattr(nap, "time", SimpleNamespace(sleep=lambda seconds: None))
        numbers = [ledger.add(PARAMETERS, SPACE) for _ in range(3)]
        ledger.complete(0, GOOD)
        ledger.complete(1, GOOD, failure="The loss is NaN.")
        ledger.fail(2, "Its worker died.")
        monkeypatch.undo()
        assert broken > 6
        assert numbers == [0, 1, 2]
        entries = ledger.trials()
        assert [entry.number for entry in entries] == [0, 1, 2]
        states = [TrialState.COMPLETED, TrialState.FAILED, TrialState.FAILED]
        assert [entry.state for entry in entries] == states
        assert ledger.history()[0].constraints == {"budget": -1.0}


@pytest.fixture
def network(server: PostgresServer) -> Iterator[TcpProxy]:
    proxy = TcpProxy(server.port)
    yield proxy
    proxy.end()


@pytest.mark.parametrize("how", Cut)
def test_a_cut_network_is_noticed_and_the_search_goes_on_when_it_is_mended(
    server: PostgresServer,
    network: TcpProxy,
    folder: StudyFolder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: Cut,
) -> None:
    monkeypatch.setattr(session, "ANSWER_WITHIN_S", 1.0)
    url = SecretStr(server.url().replace(f":{server.port}/", f":{network.port}/"))
    with Ledger.drive(folder, how, url) as ledger:
        ledger.set_definition(ASKED)
        network.cut(how)
        back = threading.Thread(target=_mend_once_noticed, args=(network, caplog))
        back.start()
        assert ledger.add(PARAMETERS, SPACE) == 0
        back.join()
        ledger.complete(0, GOOD)
        assert [entry.state for entry in ledger.trials()] == [TrialState.COMPLETED]
    assert "database is away" in caplog.text


def _mend_once_noticed(network: TcpProxy, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 60
    while "database is away" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.1)
    network.mend()


def test_a_commit_that_arrives_late_does_not_make_a_trial_twice(
    server: PostgresServer,
    network: TcpProxy,
    folder: StudyFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session stalls with a commit on its way; another one has written when it goes on."""
    monkeypatch.setattr(session, "ANSWER_WITHIN_S", 1.0)
    url = SecretStr(server.url().replace(f":{server.port}/", f":{network.port}/"))
    with Ledger.drive(folder, "late", url, patience_s=40) as ledger:
        ledger.set_definition(ASKED)
        engine = ledger._study._storage._backend.engine  # type: ignore[attr-defined]
        stalled = False

        def stall(connection: Connection) -> None:
            nonlocal stalled
            if connection.info.pop("writes", False) and not stalled:
                stalled = True
                network.cut_newest(Cut.SILENT)  # the lease's session lives on

        def note(connection: Connection, cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("INSERT INTO trials"):
                connection.info["writes"] = True

        event.listen(engine, "after_cursor_execute", note)
        event.listen(engine, "commit", stall)
        assert ledger.add(PARAMETERS, SPACE) == 0
        network.mend()
        time.sleep(1)
        assert stalled
        assert [trial.number for trial in ledger.history()] == [0]


def test_a_second_driver_is_refused_and_a_killed_one_is_followed_at_once(
    url: SecretStr, folder: StudyFolder, tmp_path: Path
) -> None:
    elsewhere = StudyFolder(tmp_path / "on another machine")
    arguments = [str(elsewhere.root), "one", url.get_secret_value()]
    first = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "driving\n"
    database = Database.at(url)
    assert database is not None
    assert database.is_driven("one")
    assert not database.is_driven("another")
    # The lease decides also where the folder's disk lends no locks.
    elsewhere.lock.unlink()
    assert is_driven(elsewhere, "one", database)
    with (
        pytest.raises(ConfigError, match=f"is being run by process {first.pid} on"),
        database.driven("one", takeover_s=0.5),
    ):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    with Ledger.drive(folder, "one", url):
        assert database.is_driven("one")
    assert not database.is_driven("one")


def test_a_driver_that_lost_its_lease_writes_nothing_more(
    server: PostgresServer, url: SecretStr, folder: StudyFolder
) -> None:
    with Ledger.drive(folder, "fenced", url) as ledger:
        ledger.set_definition(ASKED)
        with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as other:
            (key,) = other.execute(
                # Not the lock of the tables, whose session may be ending still.
                "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks "
                "JOIN pg_stat_activity USING (pid) "
                "WHERE locktype = 'advisory' AND application_name LIKE '% process %'"
            ).fetchone() or (None,)
            # The network between driver and server breaks, and another driver is quicker.
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            other.execute("SELECT pg_advisory_lock(%s::bigint)", [key])
            with pytest.raises(ClusterError, match="has taken over this study"):
                ledger.add(PARAMETERS, SPACE)
        assert ledger.history() == []
        # The other one has gone.
        assert ledger.add(PARAMETERS, SPACE) == 0


def test_a_login_that_is_refused_is_an_error_at_once_and_shows_no_secret(
    server: PostgresServer, folder: StudyFolder
) -> None:
    for wrong in (
        server.url().replace(server.password, "hush"),
        server.url("no-such-database"),
    ):
        with (
            pytest.raises(ConfigError, match="does not let us in") as error,
            Ledger.drive(folder, "study", SecretStr(wrong)),
        ):
            pass
        assert "hush" not in str(error.value)
        assert server.password not in str(error.value)


@pytest.mark.parametrize("url", ["mysql://host/ledger", "postgresql+asyncpg://host/ledger"])
def test_other_databases_are_refused(folder: StudyFolder, url: str) -> None:
    with (
        pytest.raises(ConfigError, match="must begin with postgresql:// or sqlite://"),
        Ledger.drive(folder, "study", SecretStr(url)),
    ):
        pass


def test_what_is_no_address_is_refused(folder: StudyFolder) -> None:
    with (
        pytest.raises(ConfigError, match="must be a URL such as postgresql://"),
        Ledger.drive(folder, "study", SecretStr("my-ledger")),
    ):
        pass
