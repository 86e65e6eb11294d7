"""Metrics beside success: one file for each; the folder is the registry.

What begins with an underscore is shared by several metrics, or measured of a memory alone.
"""

from tuner.evaluation.metrics._metric import Metric, Readings
from tuner.registry import Registry, modules_in

__all__ = ["METRICS", "Metric", "Readings"]

METRICS = Registry(
    noun="metric",
    group="tuner.metrics",
    base=Metric,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__)),
)
