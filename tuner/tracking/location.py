"""Where a study's runs are kept, and how a person gets to see them."""

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

from tuner.errors import ConfigError
from tuner.files.paths import absolute
from tuner.tracking.view import view_key

EXPERIMENT = "tuner"
"""The MLflow experiment that holds all studies."""

_SERVER_SCHEMES = ("http", "https")
_DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
_MANAGED_SCHEMES = ("databricks", "databricks-uc", "uc")

# The page cannot take more: the address would outgrow what servers and chats let through.
_MOST_RUNS_IN_ADDRESS = 100


def default_uri(studies: Path) -> str:
    """Return the database that all studies of a folder share when no other place is given."""
    return _sqlite_uri((studies / "mlflow.db").resolve())


def located_uri(uri: str | None, studies: Path) -> str:
    """Return where runs are kept: `uri`, with a SQLite file's path made absolute, or the default.

    Raises:
        ConfigError: MLflow cannot keep runs there.
    """
    if not uri:
        return default_uri(studies)
    file = sqlite_file(check_uri(uri))
    return uri if file is None or file.is_absolute() else _sqlite_uri(absolute(file))


def artifact_root(studies: Path) -> Path:
    """Return where artifacts lie when a database holds the runs and no server takes files."""
    return (studies / "mlartifacts").resolve()


def check_uri(uri: str) -> str:
    """Return the URI as it came, if MLflow can keep runs there.

    Raises:
        ConfigError: the scheme is one that MLflow does not write to.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    known = _SERVER_SCHEMES + _DATABASE_SCHEMES + _MANAGED_SCHEMES
    if scheme in known or uri in _MANAGED_SCHEMES:
        return uri
    hint = " MLflow no longer keeps runs in plain folders." if scheme in ("", "file") else ""
    raise ConfigError(
        f"The tracking URI must begin with one of {', '.join(known)}, but got {masked(uri)!r}."
        f"{hint} A local file is written sqlite:////absolute/path/mlflow.db."
    )


def is_server(uri: str) -> bool:
    """Return whether the URI is that of a server, which then keeps the artifacts too."""
    return not is_database(uri)


def is_database(uri: str) -> bool:
    """Return whether the URI names a database that is written without a server."""
    return urlsplit(uri).scheme.partition("+")[0] in _DATABASE_SCHEMES


def sqlite_file(uri: str) -> Path | None:
    """Return the file behind a SQLite URI; None for every other URI."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy import make_url

    # MLflow reads its URIs by the same function, which takes `%3F` in them for a `?`.
    return Path(make_url(uri).database or "")


def _sqlite_uri(file: Path) -> str:
    if not re.search("[%?]", str(file)):
        return f"sqlite:///{file}"
    from sqlalchemy import URL

    # Of a URI without the driver MLflow would make folders, called as the quoted path is.
    return URL.create("sqlite+pysqlite", database=str(file)).render_as_string()


def masked(text: str) -> str:
    """Return the text with the passwords and tokens of every URI in it replaced by `***`."""
    text = re.sub(r"(://[^\s:/@]*):[^\s/]+@", r"\1:***@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret|api_key)=)[^&\s'\"]+", r"\1***", text)


def ui_command(uri: str, port: int = 5000) -> str:
    """Return the command that opens MLflow's pages, on this machine's loopback only.

    For a server there is nothing to start: the command then opens its address.
    """
    if is_server(uri):
        return f"python -m webbrowser {shlex.quote(masked(uri))}"
    # One worker and no job runner: a fifth of the memory, and half the time to start.
    return (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui "
        f"--backend-store-uri {shlex.quote(masked(uri))} "
        f"--host 127.0.0.1 --port {port} --workers 1"
    )


def ui_address(uri: str, port: int = 5000) -> str:
    """Return where MLflow's pages are found once `ui_command` runs."""
    return masked(uri).rstrip("/") if is_server(uri) else f"http://127.0.0.1:{port}"


def study_url(address: str, experiment_id: str, study_uid: str, *, charts: bool = False) -> str:
    """Return the page with the trials of one study: a table, or the charts with the frontier."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return (
        f"{address.rstrip('/')}/#/experiments/{quote(experiment_id, safe='')}/runs"
        f"?workflowType=machine_learning{mode}"
        f"&viewStateShareKey={quote(view_key(study_uid), safe='')}"
    )


def compare_url(address: str, experiment_id: str, run_ids: Iterable[str]) -> str:
    """Return the page that compares runs: table, parallel coordinates, scatter.

    It takes the first hundred runs; the page of the study (`study_url`) shows all.
    """
    chosen = list(run_ids)[:_MOST_RUNS_IN_ADDRESS]
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":")), safe="") for ids in (chosen, [experiment_id])
    )
    return (
        f"{address.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}"
        "&workflowType=machine_learning"
    )
