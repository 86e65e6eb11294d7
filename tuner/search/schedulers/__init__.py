"""Which trials end early: one file for each scheduler; the folder is the registry."""

from tuner.registry import Registry, modules_in
from tuner.search.schedulers._scheduler import Curve, Scheduler

__all__ = ["NO_SCHEDULER", "SCHEDULERS", "Curve", "Scheduler"]

NO_SCHEDULER = "none"
"""The scheduler of studies that name none: nothing is noted and nobody is asked."""

SCHEDULERS = Registry(
    noun="scheduler",
    group="tuner.schedulers",
    base=Scheduler,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__)),
)
