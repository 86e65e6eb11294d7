"""The environment variables of tuner, typed and read in this one place."""

import re
from typing import Annotated, final

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tuner.errors import ConfigError
from tuner.validation import describe_problems

_NO = frozenset({"0", "false", "no", "off"})
# A login ends at the last @. A query may hold a password too, and what follows a # anything.
_WITH_LOGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^?#]*@(?P<place>[^@?#]*)")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


def _is_yes(value: object) -> bool:
    return str(value).strip().lower() not in _NO


@final
class Settings(BaseSettings):
    """What the environment says. A variable that is empty counts as not set."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", case_sensitive=True, env_ignore_empty=True
    )

    cache: str | None = Field(
        None,
        validation_alias="TUNER_CACHE",
        description="Folder of the cache; by default the user's cache folder.",
    )
    studies: str = Field(
        "tuner-studies",
        validation_alias="TUNER_STUDIES",
        description="Folder of studies, where --folder does not say another.",
    )
    storage: SecretStr | None = Field(
        None,
        validation_alias="TUNER_STORAGE",
        description="URL of the database of ledgers; by default a file in each study's folder.",
    )
    cluster: str | None = Field(
        None,
        validation_alias="TUNER_CLUSTER",
        description="The cluster of `tuner launch`, where no option says another.",
    )
    debug: Annotated[bool, BeforeValidator(_is_yes)] = Field(
        False,
        validation_alias="TUNER_DEBUG",
        description="Show where an unforeseen error happened.",
    )

    def shown(self) -> dict[str, str | bool | None]:
        """Return the value of each variable by its name; of a URL no login and no query."""
        return {
            variable(name): _masked(value) if isinstance(value, SecretStr) else value
            for name, value in self
        }


def read_environment() -> Settings:
    """Return what the environment says now.

    Raises:
        ConfigError: a variable has a value that it cannot have.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(f"The environment is wrong: {describe_problems(error)}") from None


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return str(Settings.model_fields[name].validation_alias)


def _masked(secret: SecretStr) -> str:
    url = secret.get_secret_value()
    if login := _WITH_LOGIN.fullmatch(url):
        return f"{login['scheme']}…@{login['place']}"
    scheme = _SCHEME.match(url)
    return f"{scheme.group() if scheme else ''}…"
