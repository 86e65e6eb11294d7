"""Metrics beside success: one file for each; the folder is the registry.

What begins with an underscore is shared by several metrics, or measured of a memory alone.
"""

from tuner.errors import ConfigError
from tuner.evaluation.metrics._metric import Metric, Readings
from tuner.registry import Registry, modules_in
from tuner.validation import show_value

__all__ = ["METRICS", "Metric", "Readings", "metric_label", "trusted_metric"]

METRICS = Registry(
    noun="metric",
    group="tuner.metrics",
    base=Metric,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__)),
)


def metric_label(name: str) -> str:
    """Return how tables call a metric: by its name where its class is not available here."""
    try:
        metric = METRICS.find_trusted(name)
    except ConfigError:
        return name
    return name if metric is None else metric.label


def trusted_metric(name: str) -> type[Metric]:
    """Return a metric that a task or a study names, without importing a module at a task's word.

    Raises:
        ConfigError: it is an outsider's, whose module nobody has asked for.
    """
    metric = METRICS.find_trusted(name)
    if metric is None:
        raise ConfigError(
            f"The metric {show_value(name)} is not part of tuner, no installed package offers it "
            f"under the entry points {METRICS.group!r}, and its module has not been imported here. "
            "A task alone does not make tuner run code: name the metric in the study's own "
            "constraints too."
        )
    return metric
