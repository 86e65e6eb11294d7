"""The report's plots, a file for each subject."""

from tuner.report.figures.best_so_far import best_so_far
from tuner.report.figures.epochs import traces
from tuner.report.figures.frontier import frontier
from tuner.report.figures.hyperparameters import importance_bars, slices
from tuner.report.figures.scaling import scaling_curves
from tuner.report.figures.sequential import retention

__all__ = [
    "best_so_far",
    "frontier",
    "importance_bars",
    "retention",
    "scaling_curves",
    "slices",
    "traces",
]
