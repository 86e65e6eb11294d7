"""The bundle itself, as another folder."""

from pathlib import Path
from typing import ClassVar, final

from tuner.bundle.export_format import ExportFormat, ExportSource, Written
from tuner.bundle.files import write_files


@final
class DeltaFormat(ExportFormat):
    """The bundle itself, for tuner: holds every kind of edit, exactly."""

    precedence: ClassVar[int | None] = 30

    def refusal(self, source: ExportSource) -> str | None:
        """Return None: it holds every edit."""
        return None

    def write(self, source: ExportSource, folder: Path) -> Written:
        """Copy the bundle; no model is needed.

        Raises:
            DiskError: the folder cannot be written.
        """
        stored = source.stored
        write_files(folder, stored.manifest, stored.tensors, stored.tensors_hash)
        return Written("the bundle itself, exact")
