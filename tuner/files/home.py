"""A home folder for a process that has none: no HOME, and a user whom the system does not know."""

import getpass
import os
import tempfile
from functools import cache
from pathlib import Path


def ensure_home() -> Path | None:
    """Give this process and its children a home and a user name where they have none.

    Returns the temporary home; None where there is one already. Libraries ask for both when they
    are imported, so call it before them.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        os.environ["USER"] = f"user-{os.getuid()}"
    if os.path.isabs(os.path.expanduser("~")):
        return None
    home = temporary_home()
    os.environ["HOME"] = str(home)
    return home


@cache
def temporary_home() -> Path:
    """Return a folder for temporary files of this user alone, the same each time if it can be."""
    path = Path(tempfile.gettempdir(), f"tuner-home-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        # Another user who made it before us could have it lead elsewhere, or read what we write.
        if path.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tuner-home-"))
    return path
