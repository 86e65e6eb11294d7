"""A real PostgreSQL server on loopback that a test may stop and start again."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

_DEBIAN = Path("/usr/lib/postgresql")


class PostgresServer:
    """A server of our own, with a password, in a folder of its own that goes with it."""

    user = "ledger"
    password = "drawn-for-this-test"

    def __init__(self) -> None:
        programs = _programs()
        if programs is None:
            pytest.skip("PostgreSQL is not installed: `apt-get install postgresql` brings it")
        self._programs = programs
        # Not in pytest's folders, which are shut to the other user whom the server may run as.
        self._folder = Path(tempfile.mkdtemp(prefix="tuner-postgres-"))
        self._data = self._folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        secret = self._folder / "password"
        secret.write_text(self.password)
        # The server refuses to run as root; its package brings a user.
        self._as = "postgres" if os.getuid() == 0 else None
        if self._as:
            for path in (self._folder, secret):
                shutil.chown(path, self._as)
        self._run(
            "initdb",
            *("--pgdata", self._data, "--username", self.user, "--pwfile", secret),
            *("--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8", "--locale", "C"),
        )
        (self._data / "postgresql.auto.conf").write_text(
            f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
            "fsync = off\nmax_connections = 60\nshared_buffers = 16MB\n"
        )
        self.start()
        self.add_database(self.user)

    def url(self, database: str = user) -> str:
        """Return the address of a database, password and all."""
        where = f"127.0.0.1:{self.port}/{database}"
        return f"postgresql+psycopg://{self.user}:{self.password}@{where}"

    def add_database(self, name: str) -> None:
        """Make an empty database."""
        self._run(
            "createdb",
            *("--host", "127.0.0.1", "--port", str(self.port), "--username", self.user),
            *("--maintenance-db", "postgres", name),
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "start", "--wait", "--pgdata", self._data, "--log", self._log)

    def stop(self) -> None:
        """Stop it as a crash would: connections break, and what was not committed is gone."""
        self._run("pg_ctl", "stop", "--wait", "--mode", "immediate", "--pgdata", self._data)

    def kill(self) -> None:
        """Kill all its processes as a power cut would; it recovers when it is started again."""
        first = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        # The first process starts the others, so it goes first; none may hold the shared memory
        # of the next start.
        doomed = [first, *first.children(recursive=True)]
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=30)

    def end(self) -> None:
        """Stop it if it runs, and take its folder away."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "PGPASSWORD": self.password, "LC_ALL": "C"},
            cwd=self._folder,
            user=self._as,
            stdin=subprocess.DEVNULL,
            # Not a pipe: the server would keep it open.
            stdout=(out := (self._folder / f"{program}.out").open("w")),
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        out.close()
        if done.returncode:
            raise RuntimeError((self._folder / f"{program}.out").read_text()[-2000:])


def _programs() -> Path | None:
    """Return the folder of the newest server's programs."""
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None
