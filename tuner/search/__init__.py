"""What to try next: spaces, samplers, studies. Ray and Optuna are at home here, and only here."""

from importlib.util import find_spec

from tuner.errors import MissingExtra

for _package in ("optuna", "ray"):
    if find_spec(_package) is None:
        raise MissingExtra(_package, "search")

from tuner.search.check import check_study  # noqa: E402
from tuner.search.config import StudyConfig, load_study  # noqa: E402
from tuner.search.observers import StudyObserver  # noqa: E402
from tuner.search.progress import Incumbent, Progress, StudyPhase  # noqa: E402
from tuner.search.result import Best, StudyResult, open_study  # noqa: E402
from tuner.search.space import Space  # noqa: E402
from tuner.search.space_file import load_space, space_names  # noqa: E402
from tuner.search.study import STUDIES, Study  # noqa: E402
from tuner.search.trackers import StudyTracker, TrackingPlace  # noqa: E402

__all__ = [
    "STUDIES",
    "Best",
    "Incumbent",
    "Progress",
    "Space",
    "Study",
    "StudyConfig",
    "StudyObserver",
    "StudyPhase",
    "StudyResult",
    "StudyTracker",
    "TrackingPlace",
    "check_study",
    "load_space",
    "load_study",
    "open_study",
    "space_names",
]
