"""A session of PostgreSQL that is given up when its server says nothing for too long."""

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL

T = TypeVar("T")

ANSWER_WITHIN_S = 60.0
"""How long an answer may take; a ledger's requests are small."""


def connector(url: URL, settings: dict[str, Any]) -> Callable[[], psycopg.Connection[Any]]:
    """Return what opens a session at `url` with further `settings` of the connection."""
    _, parameters = url.get_dialect()(dbapi=psycopg).create_connect_args(url)  # type: ignore[call-arg]
    return lambda: _Session.connect(**{**parameters, **settings})


class _Session(psycopg.Connection[Any]):
    """A session that closes itself when an answer is late.

    TCP notices a server that has vanished. One that hangs, or a proxy before it, goes on to
    acknowledge what it is sent.
    """

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """Return what `gen` returns once the server has answered.

        Raises:
            OperationalError: it has not within `ANSWER_WITHIN_S`; the session is closed.
        """
        return super().wait(self._in_time(gen), *arguments, **options)

    def _in_time(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        deadline = time.monotonic() + ANSWER_WITHIN_S
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError("the server does not answer")
                state = gen.send(ready)
        except StopIteration as end:
            returned: T = end.value
            return returned
