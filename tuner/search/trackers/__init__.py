"""Who shows a study while it runs: one file for each tracker; the folder is the registry."""

from tuner.registry import Registry, modules_in
from tuner.search.trackers._tracker import StudyTracker, TrackingPlace

__all__ = ["MLFLOW", "NO_TRACKING", "TRACKERS", "StudyTracker", "TrackingPlace"]

MLFLOW = "mlflow"
"""The tracker of studies that name none, of `--track`, and of `tuner status --sync`."""

NO_TRACKING = "none"
"""Stands for no tracker at all."""

TRACKERS = Registry(
    noun="tracker",
    group="tuner.trackers",
    base=StudyTracker,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__)),
)
