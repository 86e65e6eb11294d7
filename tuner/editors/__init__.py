"""How to edit: a method is a file or a folder here, and the folder is the registry.

Of a method that is a folder, the class is in `editor.py`. What begins with an underscore is shared
by several methods and is not one.
"""

from pathlib import Path

from tuner.editing.editor import Editor
from tuner.registry import Registry, modules_in

EDITORS = Registry(
    noun="editor",
    group="tuner.editors",
    # mypy: an abstract base is what is meant.
    base=Editor,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__), within="editor"),
)


def editor_names() -> tuple[str, ...]:
    """Return the names of the methods here, and of those that installed packages offer."""
    return EDITORS.names()


def find_editor(name: str, beside: Path | None = None) -> type[Editor]:
    """Return the editor called `name`, or an outsider's by `package.module:Class`.

    An outsider's module is looked for in the working directory and in the folder `beside`, too.

    Raises:
        ConfigError: there is no such editor, or what was named is something else.
    """
    return EDITORS.find(name, beside)
