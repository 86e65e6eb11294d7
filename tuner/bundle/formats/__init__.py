"""The forms in which an edit is exported: a format is a file, and the folder is the registry."""

from tuner.bundle.export_format import ExportFormat
from tuner.registry import Registry, modules_in

FORMATS = Registry(
    noun="export format",
    group="tuner.formats",
    # mypy: an abstract base is what is meant.
    base=ExportFormat,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__)),
)
