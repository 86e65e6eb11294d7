"""Who serves what is named by a scheme, such as the models and the text of `builtin:`.

The core knows a provider by name only, and loads it when something of its is asked for.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, final

from torch import Tensor, nn

_PROVIDERS = {"builtin": "tuner.world.provider"}

TextPartName = Literal["search", "confirmation", "auxiliary", "gradient"]


@final
@dataclass(frozen=True)
class ShippedGradient:
    """Σ∇loss / Σloss over blocks of `length` tokens, by parameter; of a Backpack also by sense."""

    tensors: Mapping[str, Tensor]
    blocks: int
    length: int


class Provider(Protocol):
    """A module that serves the models, the general text and the gradients of one scheme."""

    def models(self) -> Mapping[str, Path]:
        """Return the folders of its models, by name."""
        ...

    def general_documents(self, part: TextPartName, seed: int) -> Iterator[str]:
        """Yield general text without end; parts never share a document, whatever their seeds."""
        ...

    def shipped_gradient(self, network: nn.Module) -> ShippedGradient | None:
        """Return the mean gradient of a model of exactly these weights, if it has one."""
        ...


def provider_of(id: str) -> Provider | None:
    """Return who serves `id`, such as `builtin:neox`; None for paths and hub ids."""
    return get_provider(id.partition(":")[0]) if is_provided(id) else None


def get_provider(scheme: str) -> Provider:
    """Return who serves a scheme.

    Raises:
        KeyError: nobody does.
    """
    return cast(Provider, importlib.import_module(_PROVIDERS[scheme]))


def is_provided(id: str) -> bool:
    """Return whether some provider serves `id`, without loading it."""
    scheme, mark, _ = id.partition(":")
    return bool(mark) and scheme in _PROVIDERS
