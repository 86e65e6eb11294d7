"""The ledger in a PostgreSQL server: waited for while it is away, written by one driver alone."""

import hashlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar, final

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from pydantic import SecretStr
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential
from tenacity.stop import stop_after_delay

from tuner.errors import ClusterError, ConfigError, MissingExtra
from tuner.search.storage.url import DRIVER, storage_url

T = TypeVar("T")

DEFAULT_PATIENCE_S = 600.0
"""How long the server may be away before the search gives up."""
TAKEOVER_S = 60.0
"""How long a new driver waits for the lease of one that has vanished with its machine."""

# A session whose other end has vanished is noticed on both sides within half a minute.
_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # For what was sent and is not acknowledged, which keepalives do not ask about.
    "tcp_user_timeout": 30_000,
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}
# What a server says to a login that will fail again; the protocol's code for it does not reach us.
_REFUSALS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
)

_logger = logging.getLogger(__name__)


class StorageAccess(Protocol):
    """How the storage of a ledger is read and written."""

    def read(self, act: Callable[[], T]) -> T:
        """Return what `act` reads; it may be called again."""

    def write(self, act: Callable[[], T]) -> T:
        """Return what `act` returns; it may be called again after it has written all or a part."""


@final
class DirectAccess:
    """A storage that is always there, such as a file."""

    def read(self, act: Callable[[], T]) -> T:
        """Return what `act` reads."""
        return act()

    def write(self, act: Callable[[], T]) -> T:
        """Return what `act` returns."""
        return act()


class _StorageUnavailable(Exception):
    """The server cannot be reached now.

    No error of SQLAlchemy's: Optuna would by itself do again what may have been written before the
    connection broke, and a trial would be there twice.
    """


@final
class Database:
    """A PostgreSQL server that holds ledgers. While it is away, reads and writes wait for it."""

    def __init__(self, url: URL, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self._url = url
        self._patience_s = patience_s
        self._lease: _Lease | None = None

    @classmethod
    def at(cls, url: SecretStr, patience_s: float = DEFAULT_PATIENCE_S) -> "Database | None":
        """Return the server that a URL is of; None where it is of a file.

        Raises:
            ConfigError: it is not a URL of a storage that can hold a ledger.
            MissingExtra: what speaks to the server is not installed.
        """
        parsed = storage_url(url)
        if parsed.get_backend_name() == "sqlite":
            return None
        if find_spec(DRIVER) is None:
            raise MissingExtra(DRIVER, "cluster")
        return cls(parsed.set(drivername=f"postgresql+{DRIVER}"), patience_s)

    def storage(self) -> RDBStorage:
        """Return Optuna's storage there, with its tables made if need be.

        Raises:
            ConfigError: the server does not let us in.
            ClusterError: it has been away too long.
        """
        url = self._url.render_as_string(hide_password=False)

        def connect() -> RDBStorage:
            with self._alone(), _translate_connection_errors():
                storage = RDBStorage(
                    url,
                    engine_kwargs={
                        "pool_pre_ping": True,
                        "creator": _connector(self._url, self._lease and self._lease.name),
                    },
                )
            _translate_driver_errors(storage.engine)
            return storage

        return self.read(connect)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one make the tables at a time: who finds them half made would fail."""
        engine = create_engine(self._url, poolclass=NullPool, creator=_connector(self._url))
        _translate_driver_errors(engine)
        with engine.connect() as session:
            session.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _key_of("tuner tables")})
            yield

    @contextmanager
    def driven(self, study: str, takeover_s: float = TAKEOVER_S) -> Iterator[None]:
        """Hold the lease on a study; within, writes are refused once it is another's.

        A session of the server holds it, so that it ends with its driver, however that ends.

        Raises:
            ConfigError: another driver has the lease, or the server does not let us in.
            ClusterError: the server has been away too long.
        """
        lease = _Lease(self._url, study)
        waiting = Retrying(
            retry=retry_if_exception_type(_LeaseHeld),
            wait=wait_exponential(multiplier=0.25, max=2),
            stop=stop_after_delay(takeover_s),
            before_sleep=_log_lease_holder,
            reraise=True,
        )
        try:
            waiting(lambda: self.read(lease.renew))
        except _LeaseHeld as taken:
            raise ConfigError(
                f"The study {study!r} is being run by {taken.holder}. "
                "Wait until it ends, or stop it first."
            ) from None
        self._lease = lease
        try:
            yield
        finally:
            self._lease = None
            lease.end()

    def is_driven(self, study: str) -> bool:
        """Return whether some driver has the lease on a study.

        Raises:
            ConfigError: the server does not let us in.
            ClusterError: the server has been away too long.
        """
        return self.read(_Lease(self._url, study).is_taken)

    def read(self, act: Callable[[], T]) -> T:
        """Return what `act` reads, as soon as the server is there.

        Raises:
            ClusterError: it has been away too long, or does not do what it is asked.
        """
        patiently = Retrying(
            retry=retry_if_exception_type(_StorageUnavailable),
            wait=wait_exponential(multiplier=0.25, max=5),
            stop=stop_after_delay(self._patience_s),
            before_sleep=self._say_so,
            retry_error_callback=self._give_up,
        )
        try:
            result: T = patiently(act)
        except (SQLAlchemyError, StorageInternalError) as error:
            # No statement or address: they may hold secrets.
            raise ClusterError(
                f"The ledger's database does not do what it is asked ({type(error).__name__}). "
                "It must be PostgreSQL 14 or later, and its user may make tables."
            ) from None
        return result

    def write(self, act: Callable[[], T]) -> T:
        """Return what `act` returns, once the server is there and the lease is ours.

        Raises:
            ClusterError: the server has been away too long, or another driver has taken over.
        """

        def as_driver() -> T:
            if self._lease is not None:
                try:
                    self._lease.renew()
                except _LeaseHeld as taken:
                    raise ClusterError(
                        f"{taken.holder} has taken over this study while the ledger was out of "
                        "our reach. It goes on there; nothing more is written from here."
                    ) from None
            try:
                return act()
            except _StorageUnavailable:
                # What was sent may still arrive, or wait in the server for its disk. The lease,
                # taken anew, ends our sessions, so that nothing is written behind our back.
                if self._lease is not None:
                    self._lease.end()
                raise

        return self.read(as_driver)

    def _say_so(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            _logger.warning(
                "The ledger's database is away; waiting for it, for %g s at most.",
                self._patience_s,
            )

    def _give_up(self, state: RetryCallState) -> Any:
        raise ClusterError(
            f"The ledger's database has been away for {self._patience_s:g} s. No finished trial is "
            "lost: the same study, started again once it is back, goes on."
        )


def _settings(url: URL) -> dict[str, Any]:
    """Return the settings of a connection; those that the URL gives stand."""
    given = {key: str(value) for key, value in url.query.items()}
    options = f"{given.pop('options', '')} {_CONNECTION['options']}".strip()
    return {**_CONNECTION, **given, "options": options}


def _connector(url: URL, session_name: str | None = None) -> Callable[[], Any]:
    """Return what opens a session, under a name by which the server knows it if one is given."""
    # Not above: psycopg is of the extra `cluster`.
    from tuner.search.storage.session import connector

    name = {"application_name": session_name} if session_name is not None else {}
    return connector(url, {**_settings(url), **name})


def _key_of(name: str) -> int:
    """Return the number by which PostgreSQL knows a lock of this name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class _LeaseHeld(Exception):
    """Another driver has the lease."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@final
class _Lease:
    """The right to drive a study: an advisory lock of a session that does nothing else."""

    def __init__(self, url: URL, study: str) -> None:
        self._key = _key_of(f"tuner study {study}")
        # PostgreSQL shows the two halves of a key.
        self._halves = {
            "high": self._key >> 32 & 0xFFFFFFFF,
            "low": self._key & 0xFFFFFFFF,
        }
        # The name of all this driver's sessions. Drawn anew, so that nobody else's is taken for a
        # lost one of ours; what follows is for people. 63 bytes are kept of it.
        mark = secrets.token_hex(4)
        self.name = f"{mark} process {os.getpid()} on {socket.gethostname()}"[:63]
        self._engine = create_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            creator=_connector(url, self.name),
        )
        _translate_driver_errors(self._engine)
        self._session: Connection | None = None

    def renew(self) -> None:
        """Make sure that the lease is ours; take it, or take it again after a lost connection.

        Raises:
            _LeaseHeld: it is another's.
            _StorageUnavailable: the server is away.
        """
        if self._session is not None:
            try:
                self._session.execute(text("SELECT 1"))
                return
            except _StorageUnavailable:
                self.end()
        session = self._engine.connect()
        try:
            # The server may not have noticed yet that our earlier sessions have ended, and one of
            # them may be about to write. Those of the pool that live are opened again when needed.
            ended = session.scalars(
                text(
                    "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
                    "WHERE application_name = :name AND pid <> pg_backend_pid() "
                    "AND usename = current_user"
                ),
                {"name": self.name},
            ).all()
            if not all(ended):
                raise _StorageUnavailable("an earlier session has not ended yet")
            if not session.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}):
                raise _LeaseHeld(self._holder(session) or "another driver")
        except BaseException:
            session.close()
            raise
        self._session = session

    def is_taken(self) -> bool:
        """Return whether anybody has the lease.

        Raises:
            _StorageUnavailable: the server is away.
        """
        with self._engine.connect() as session:
            return self._holder(session) is not None

    def end(self) -> None:
        """Give the lease back."""
        if self._session is not None:
            self._session.invalidate()
            self._session.close()
            self._session = None

    def _holder(self, session: Connection) -> str | None:
        holder = session.scalar(
            text(
                "SELECT coalesce(application_name, '') FROM pg_locks LEFT JOIN pg_stat_activity "
                f"USING (pid) WHERE {_OURS}"
            ),
            self._halves,
        )
        return None if holder is None else str(holder).partition(" ")[2] or "another driver"


_OURS = (
    "locktype = 'advisory' AND granted AND objsubid = 1 AND classid = :high AND objid = :low "
    "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _log_lease_holder(state: RetryCallState) -> None:
    failure = state.outcome.exception() if state.outcome is not None else None
    if state.attempt_number == 1 and isinstance(failure, _LeaseHeld):
        _logger.warning(
            "%s runs this study; waiting a moment in case it has just been lost.", failure.holder
        )


def _translate_driver_errors(engine: Engine) -> None:
    """Let an engine raise `_StorageUnavailable` or, where the server refuses, `ConfigError`."""

    @event.listens_for(engine, "handle_error")
    def translate(context: ExceptionContext) -> None:
        if context.is_disconnect or _may_pass(context.sqlalchemy_exception):
            raise _translated(context.original_exception) from None


@contextmanager
def _translate_connection_errors() -> Iterator[None]:
    """Do the same for an engine that somebody else is making."""
    try:
        yield
    except (DBAPIError, StorageInternalError) as error:
        # Optuna puts a part of them into its own.
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        if isinstance(cause, DBAPIError) and (cause.connection_invalidated or _may_pass(cause)):
            raise _translated(cause.orig) from None
        raise


def _may_pass(error: BaseException | None) -> bool:
    return isinstance(error, OperationalError | InterfaceError)


def _translated(error: BaseException | None) -> Exception:
    said = str(error)
    if any(words in said for words in _REFUSALS):
        return ConfigError(
            "The ledger's database does not let us in: its user, password or database name is "
            "wrong, or may not be used from here. Correct `storage`."
        )
    return _StorageUnavailable(type(error).__name__)
