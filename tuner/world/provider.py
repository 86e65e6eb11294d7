"""What the built-in world serves to the core: `builtin:NAME` models, `builtin:world` text."""

from pathlib import Path

from tuner.world.gradient import shipped_gradient
from tuner.world.text import general_documents

__all__ = ["general_documents", "models", "shipped_gradient"]


def models() -> dict[str, Path]:
    """Return the folders of the models that travel with tuner, by name."""
    folder = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}
