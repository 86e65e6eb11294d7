"""The interface of all export formats: what one can hold, and how it is written."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeAlias, final

from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.bundle.manifest import Manifest
from tuner.editing.delta import Delta
from tuner.editing.model import LanguageModel

AnyBundle: TypeAlias = Bundle | StoredBundle


@final
@dataclass(frozen=True)
class ExportSource:
    """A bundle that is to be exported; its delta and its base are loaded when they are asked for.

    The models that a delta brings along may be out of reach, and a copy needs none of them.
    """

    bundle: AnyBundle
    load_base: Callable[[], LanguageModel]
    rank: int | None = None
    """The rank to which a dense change may be cut."""

    @property
    def manifest(self) -> Manifest:
        """Where the delta comes from and what is known about it."""
        return self.bundle.manifest

    @cached_property
    def stored(self) -> StoredBundle:
        """The bundle as it is stored."""
        return self.bundle.stored if isinstance(self.bundle, Bundle) else self.bundle

    @cached_property
    def opened(self) -> Bundle:
        """The bundle with its delta.

        Raises:
            ConfigError: it is damaged, or a model that it brings along cannot be loaded.
        """
        return self.bundle if isinstance(self.bundle, Bundle) else self.bundle.open()

    @property
    def delta(self) -> Delta:
        """The delta.

        Raises:
            ConfigError: it is damaged, or a model that it brings along cannot be loaded.
        """
        return self.opened.delta

    @cached_property
    def base(self) -> LanguageModel:
        """The very base model that the delta was made from.

        Raises:
            ConfigError: it cannot be loaded.
            BaseMismatch: it is another one now.
        """
        base = self.load_base()
        self.opened.check_base(base)
        return base

    def served_otherwise(self, form: "ExportFormat") -> Delta | None:
        """Return the change that a format serves where it is not the one that was judged."""
        if self.manifest.runs_beside:
            return None
        # A float32 delta is the same in all forms to rounding, unless a rank cuts it.
        if self.manifest.base_dtype == "float32" and self.rank is None:
            return None
        served = form.served(self)
        return None if served is self.delta else served


@final
@dataclass(frozen=True)
class Written:
    """What a format says of the files that it wrote."""

    note: str
    """How far the files are from the edited model, in a few words: `exact`."""
    card: str | None = None
    """The README that is put beside them."""


class ExportFormat(ABC):
    """A form in which other tools load an edit; the first line of its docstring says which.

    A subclass is final and lives in a file `NAME.py` under `tuner/bundle/formats/`, or outside: an
    installed package offers it under the entry points `tuner.formats`, and `--format` takes any
    `package.module:Class`. It is made without arguments.
    """

    precedence: ClassVar[int | None] = None
    """Of the formats that suit an edit, the least is taken by default; one without never is."""

    @abstractmethod
    def refusal(self, source: ExportSource) -> str | None:
        """Return why the format cannot hold an edit, as a sentence, or None if it can."""
        ...

    def suits(self, source: ExportSource) -> bool:
        """Return whether it is a good default for an edit: by default, for all that it can hold."""
        return self.refusal(source) is None

    def served(self, source: ExportSource) -> Delta:
        """Return the change as this format serves it; by default the edit as it was judged.

        Raises:
            ConfigError: the format cannot hold the edit after all.
            BaseMismatch: the base model is not the one that the delta was made from.
        """
        return source.delta

    @abstractmethod
    def write(self, source: ExportSource, folder: Path) -> Written:
        """Write the files into a new folder, which is put into place when all is done.

        Raises:
            ConfigError: the format cannot hold the edit after all.
            BaseMismatch: the base model is not the one that the delta was made from.
            DiskError: the folder cannot be written.
        """
        ...
