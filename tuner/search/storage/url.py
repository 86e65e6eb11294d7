"""The URL of a ledger's storage: a PostgreSQL server, or a SQLite file."""

from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from tuner.errors import ConfigError
from tuner.files.paths import absolute
from tuner.validation import show_path

DRIVER = "psycopg"
"""What speaks to a PostgreSQL server."""

_KNOWN_AS = ("postgresql", f"postgresql+{DRIVER}")


def resolved_storage(url: str, start: Path | None = None) -> str:
    """Return the URL with a SQLite file's path made absolute, from `start` or where we work."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url  # refused where it is opened
    file = parsed.database
    if parsed.get_backend_name() != "sqlite" or not file or file.startswith((":", "file:")):
        return url
    located = parsed.set(database=str(absolute(file, start)))
    return located.render_as_string(hide_password=False)


def storage_url(url: SecretStr) -> URL:
    """Return the URL of a storage that can hold a ledger, taken apart.

    Raises:
        ConfigError: it is not one.
    """
    try:
        parsed = make_url(url.get_secret_value())
    except (ArgumentError, ValueError):  # the latter for a port that is not a number
        raise ConfigError(
            "`storage` must be a URL such as postgresql://USER:PASSWORD@HOST/DATABASE "
            "or sqlite:///FILE, and is none."
        ) from None
    if parsed.get_backend_name() != "sqlite" and parsed.drivername not in _KNOWN_AS:
        raise ConfigError(
            "`storage` must begin with postgresql:// or sqlite://, but begins with "
            f"{show_path(parsed.drivername)}://. Change it."
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            "`storage` must name a file, as sqlite:///FILE does, but names none: what is only in "
            "memory is lost."
        )
    return parsed
