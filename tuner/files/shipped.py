"""Where the search spaces and tasks that travel with `tuner` are found."""

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """Return the folder `search_spaces` or `datasets`, in a clone or in an installed wheel.

    Raises:
        FileNotFoundError: the installation lacks the folder; it is damaged.
    """
    package = Path(__file__).parents[1]
    # A wheel carries the folders inside the package; a clone has them beside it.
    for candidate in (package / "shipped_data" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"This installation of tuner has no {name!r} folder; reinstall it.")
