"""Paths as users spell them: which names are paths, made absolute once, and names made of them."""

import hashlib
import os
import re
from pathlib import Path

_MOST_IN_NAME = 100
_MARK = 6


def absolute(spelled: str | Path, start: Path | None = None) -> Path:
    """Return the absolute path that was meant, from `start` or else the working directory.

    `~` is the home folder. Links are kept, for other machines may have them lead elsewhere.
    """
    path = Path(start or "", os.path.expanduser(spelled)).absolute()
    plain = Path(os.path.normpath(path))
    try:
        # Behind a link `..` leads elsewhere than it reads.
        return plain if os.path.realpath(plain) == os.path.realpath(path) else path
    except (OSError, ValueError):
        return plain


def is_spelled_as_path(name: str) -> bool:
    """Return whether a name can only be a path, whatever there is."""
    return name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1


def legal_part(name: str) -> str:
    """Return a name as it may stand in the name of a study's folder; other names give others.

    One that has to be changed ends in a mark of the original: `my facts` and `my-facts` differ.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    if plain == name and len(plain) <= _MOST_IN_NAME:
        return plain
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_MARK]
    return f"{plain[:_MOST_IN_NAME].rstrip('-._')}-{mark}".lstrip("-")
