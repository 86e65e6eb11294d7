"""How hyperparameters are proposed: one file for each sampler; the folder is the registry."""

from tuner.registry import Registry, modules_in
from tuner.search.samplers._sampler import Sampler

__all__ = ["AUTO", "SAMPLERS", "Sampler", "chosen_sampler"]

AUTO = "auto"
"""Stands for `gp` where one editor's space is searched at a time, and for `tpe` otherwise."""

SAMPLERS = Registry(
    noun="sampler",
    group="tuner.samplers",
    base=Sampler,  # type: ignore[type-abstract]
    modules=lambda: modules_in(__name__, list(__path__)),
)


def chosen_sampler(name: str, *, flat: bool) -> str:
    """Return the sampler that `name` stands for in a space, flat or of several editors."""
    return name if name != AUTO else "gp" if flat else "tpe"
