"""Doors for outsiders: what is found by its name, by an entry point, or as `package.module:Class`.

A registry holds the classes of one kind (editors, metrics, samplers …). Ours are known by the
names of their files. An installed package offers its own under an entry-point group such as
`tuner.editors`, and anything importable is named as `package.module:Class`.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar, final

from tuner.errors import ConfigError, unknown_name
from tuner.files.paths import absolute
from tuner.validation import show_value

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Registry(Generic[T]):
    """The classes of one kind, by name.

    Example:
        >>> from tuner.editors import EDITORS
        >>> EDITORS.find("lora").name()
        'lora'
    """

    noun: str
    """What one of them is called in a sentence: `editor`."""
    group: str
    """The entry-point group under which installed packages offer theirs: `tuner.editors`."""
    base: type[T]
    """The class that all of them subclass."""
    modules: Callable[[], Mapping[str, str]]
    """Returns our own: for each name the module that holds its class."""

    def names(self) -> tuple[str, ...]:
        """Return the names of ours and of those that installed packages offer."""
        return tuple(sorted({*self.modules(), *self._offered()}))

    def find(self, name: str, beside: Path | None = None) -> type[T]:
        """Return the class called `name`, or an outsider's by `package.module:Class`.

        An outsider's module is looked for in the working directory and in the folder `beside`, too.

        Raises:
            ConfigError: there is none of that name, or it cannot be imported, or is something else.
        """
        if ":" in name:
            module, _, attribute = name.partition(":")
            for folder in (Path.cwd(), absolute(beside or "")):
                if str(folder) not in sys.path:
                    sys.path.append(str(folder))
            return self._imported(name, lambda: getattr(importlib.import_module(module), attribute))
        modules = self.modules()
        if name in modules:
            return self._only_class(importlib.import_module(modules[name]))
        offered = self._offered()
        if name in offered:
            return self._imported(name, offered[name].load)
        raise unknown_name(self.noun, name, self.names())

    def find_trusted(self, name: str) -> type[T] | None:
        """Return the class of a name that a stranger's file says, or None if that is not safe.

        Ours and those that installed packages offer are found, and `package.module:Class` where
        that module has been imported already: none is imported because a file names it.

        Raises:
            ConfigError: there is none of that name, or it cannot be imported, or is something else.
        """
        if ":" not in name:
            return self.find(name)
        for offer in self._offered().values():
            if offer.value == name:
                return self._imported(name, offer.load)
        module, _, attribute = name.partition(":")
        imported = sys.modules.get(module)
        if imported is None:
            return None
        # Not getattr: some modules import others when they are asked for an attribute.
        return self._imported(name, lambda: vars(imported)[attribute])

    def name_of(self, kind: type[T]) -> str:
        """Return the name by which `find` returns a class."""
        for name, module in self.modules().items():
            if kind.__module__ == module:
                return name
        for name, offer in self._offered().items():
            if offer.value == f"{kind.__module__}:{kind.__qualname__}":
                return name
        return f"{kind.__module__}:{kind.__qualname__}"

    def _offered(self) -> dict[str, EntryPoint]:
        return {offer.name: offer for offer in entry_points(group=self.group)}

    def _imported(self, name: str, load: Callable[[], object]) -> type[T]:
        try:
            loaded = load()
        # A stranger's module may raise anything.
        except Exception as error:
            raise ConfigError(
                f"The {self.noun} {show_value(name)} cannot be imported: "
                f"{type(error).__name__}: {error}."
            ) from None
        if not (inspect.isclass(loaded) and issubclass(loaded, self.base)):
            raise ConfigError(
                f"{show_value(name)} is not a class of {self.noun}s: it must subclass "
                f"{self.base.__module__}.{self.base.__qualname__}."
            )
        missing = sorted(getattr(loaded, "__abstractmethods__", ()))
        if missing:
            raise ConfigError(
                f"{show_value(name)} is not a whole {self.noun}: it lacks {', '.join(missing)}."
            )
        return loaded

    def _only_class(self, module: ModuleType) -> type[T]:
        (kind,) = (
            member
            for name, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, self.base)
            and member.__module__ == module.__name__
            and not name.startswith("_")
            and not inspect.isabstract(member)
        )
        return kind


def modules_in(package: str, path: list[str], within: str | None = None) -> dict[str, str]:
    """Return the modules of a package by name, without those that begin with an underscore.

    Of one that is itself a package, it is the module `within` it, where that is given.
    """
    modules = {}
    for module in pkgutil.iter_modules(path):
        if module.name.startswith("_"):
            continue
        inner = f".{within}" if module.ispkg and within is not None else ""
        modules[module.name] = f"{package}.{module.name}{inner}"
    return modules
