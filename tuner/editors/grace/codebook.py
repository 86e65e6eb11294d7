"""Keys with radii, which grow edit by edit: how far each entry of a codebook reaches."""

from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

# As in the published code: the older of two entries that meet halfway leaves the line itself free.
_MARGIN = 1e-5

Expansion = Literal["coverage", "moving_average"]
Targets = tuple[str, ...]
"""What an entry is about: its target, and what it is compared with where the loss needs that."""


@final
@dataclass
class Codebook:
    """Entries in the order in which they came. What they are depends on that order.

    Source: Hartvigsen et al. 2023 (arXiv:2211.11031), algorithm 1, with the details of their code.
    Other than there, two edits ask for the same if their targets are the same; the code compares
    the means of token ids, by which other targets may pass for the same. And a prompt that comes
    again with another target takes over its own entry, where the code would leave both entries
    without reach.
    """

    radius: float
    """What new entries reach."""
    expansion: Expansion = "coverage"
    """How an entry comes to hold an edit beyond it that asks for the same: it reaches as far, or
    also moves halfway."""
    keys: list[Float[Tensor, " d_in"]] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    targets: list[Targets] = field(default_factory=list)

    def copy(self) -> "Codebook":
        """Return a codebook that grows apart from this one."""
        return replace(self, keys=[*self.keys], radii=[*self.radii], targets=[*self.targets])

    def take(self, query: Float[Tensor, " d_in"], targets: Targets) -> int:
        """Make room for an edit and return the number of its entry, new or not."""
        if not self.keys:
            return self._added(query, targets, self.radius)
        distances = (torch.stack(self.keys) - query).norm(dim=1)
        nearest = int(distances.argmin())
        distance = float(distances[nearest])
        if distance > self.radius + self.radii[nearest]:
            return self._added(query, targets, self.radius)
        if targets == self.targets[nearest]:
            self._expand(nearest, query, distance)
            return nearest
        if distance / 2 <= _MARGIN:
            self.targets[nearest] = targets
            return nearest
        self.radii[nearest] = distance / 2 - _MARGIN
        return self._added(query, targets, distance / 2)

    def _added(self, key: Tensor, targets: Targets, radius: float) -> int:
        self.keys.append(key)
        self.radii.append(radius)
        self.targets.append(targets)
        return len(self.keys) - 1

    def _expand(self, entry: int, query: Tensor, distance: float) -> None:
        if distance <= self.radii[entry]:
            return
        self.radii[entry] = distance
        if self.expansion == "moving_average":
            self.keys[entry] = (self.keys[entry] + query) / 2
