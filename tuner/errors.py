"""Every deliberate error of `tuner`.

    TunerError                  shown to the user as it stands, without a traceback
    ├── ConfigError             fix your input: a flag, a YAML file, a bundle, a budget
    │   ├── BaseMismatch        a delta meets a base model that it was not made for
    │   └── UnknownKind         a bundle holds a kind of delta that is not at hand here
    ├── TaskError               fix your data; names `file.jsonl:41`
    ├── EditError               this trial fails, the study goes on (NaN, out of memory)
    ├── StudyFailed             a study ended without one completed trial
    ├── ClusterError            Ray, a worker, the ledger or Kubernetes is out of reach
    │   ├── AccessDenied        the cluster does not let you do it
    │   └── RayLost             Ray on this machine ended; the same command goes on
    ├── DiskError               a disk is full, or a file cannot be written or read
    ├── FetchError              a published file cannot be had, or is not the one it should be
    └── MissingExtra            an optional dependency is absent; prints the pip command

Being over budget is a result, not an error.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from tuner.validation import show_value


class TunerError(Exception):
    """The base of all deliberate errors. Its message is written for the user and shown as is."""

    exit_code = 1


class ConfigError(TunerError):
    """Something that the user wrote or chose does not hold."""

    exit_code = 2


class BaseMismatch(ConfigError):
    """A delta is used with a base model other than the one it was made from."""


class UnknownKind(ConfigError):
    """A bundle holds a kind of delta that is not at hand here."""


class TaskError(TunerError):
    """A task's files are missing or malformed."""

    exit_code = 2


class EditError(TunerError):
    """An editor could not produce a usable delta; the trial fails and the study goes on."""


class StudyFailed(TunerError):
    """A study ended without one completed trial."""


class ClusterError(TunerError):
    """Ray, a worker, the ledger or Kubernetes cannot be reached, or does not do what it should."""


class AccessDenied(ClusterError):
    """The cluster does not know you, or does not let you do what is asked."""


class DiskError(TunerError):
    """A file cannot be written or read: the disk is full, read-only or not the user's."""


class RayLost(ClusterError):
    """The processes of Ray on this machine keep ending. What was done is kept, as by Ctrl-C."""

    exit_code = 130


class FetchError(TunerError):
    """A published file cannot be downloaded, or its checksum is not the one it should have."""


class MissingExtra(TunerError):
    """A feature needs packages that are not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"`{package}` is needed for this and is not installed. "
            f"Install it with: pip install 'tuner[{extra}]'"
        )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not among `known`, with the nearest one offered."""
    names = sorted(known)
    near = get_close_matches(name[:200], names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(
        f"No {kind} is called {show_value(name)}.{hint} Known: {', '.join(names) or 'none'}."
    )
