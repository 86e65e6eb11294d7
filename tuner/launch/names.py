"""What a study is called on a cluster: legal, the same each time, and no other study's name."""

import hashlib
import re

from tuner.launch.kubernetes.rayjob import MOST_IN_NAME

_MARK = 8


def legal_name(study: str) -> str:
    """Return the name of a study's objects: its own where that is legal, else close to it.

    A name that had to be changed ends in a mark of the original, so that `a_b` and `a.b` differ.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"study-{plain}".rstrip("-")
    if plain == study and len(plain) <= MOST_IN_NAME:
        return plain
    mark = hashlib.sha256(study.encode()).hexdigest()[:_MARK]
    return f"{plain[: MOST_IN_NAME - _MARK - 1].rstrip('-')}-{mark}"
