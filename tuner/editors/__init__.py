"""How to edit: a method is a file or a folder here, and the folder is the registry.

Of a method that is a folder, the class is in `editor.py`. What begins with an underscore is shared
by several methods and is not one.
"""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

from tuner.editing.editor import Editor
from tuner.errors import ConfigError, unknown_name
from tuner.files.paths import absolute
from tuner.validation import show_value


def editor_names() -> tuple[str, ...]:
    """Return the names of the methods in this folder."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def find_editor(name: str, beside: Path | None = None) -> type[Editor]:
    """Return the editor called `name`, or an outsider's by "package.module:Class".

    An outsider's module is looked for in the working directory and in the folder `beside`, too.

    Raises:
        ConfigError: there is no such editor, or what was named is none.
    """
    if ":" in name:
        return _find_outsider(name, beside)
    if name not in editor_names():
        raise unknown_name("editor", name, editor_names())
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.editor")
    (found,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Editor) and member.__module__ == module.__name__
    )
    return found


def _find_outsider(name: str, beside: Path | None) -> type[Editor]:
    module_name, _, class_name = name.partition(":")
    # A user's own module stands beside the space, or where the command was started.
    for folder in (Path.cwd(), absolute(beside or "")):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    # A stranger's module may raise anything.
    except Exception as error:
        raise ConfigError(
            f"The editor {show_value(name)} cannot be imported: {type(error).__name__}: {error}."
        ) from None
    if not (inspect.isclass(found) and issubclass(found, Editor)) or inspect.isabstract(found):
        raise ConfigError(
            f"{show_value(name)} is no editor: it must subclass tuner.Editor and have edit()."
        )
    return found
