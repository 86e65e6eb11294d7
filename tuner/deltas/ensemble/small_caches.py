"""What two small networks remember of a text, kept within the cache of a large one."""

from dataclasses import dataclass
from typing import Self, final

from transformers.cache_utils import Cache

from tuner.backpack.cache_layers import OwnLayer, layers_of
from tuner.errors import ConfigError


@final
class _OfBase(OwnLayer):
    """A layer of the small base network."""


@final
class _OfEdited(OwnLayer):
    """A layer of the small edited network."""


@final
@dataclass(frozen=True)
class SmallCaches:
    """Caches for a small network and its edited twin.

    Their layers are further layers of the large network's cache, so that whatever transformers
    does to that one (beams, cropping, copies) is done to them too.
    """

    large: Cache
    base: Cache
    edited: Cache

    @classmethod
    def within(cls, large: Cache, new: int) -> Self:
        """Return the caches within that of the large network, which has just read `new` tokens.

        Raises:
            ConfigError: the small networks have not read what the cache holds.
        """
        caches = cls(large, layers_of(large, _OfBase), layers_of(large, _OfEdited))
        past = large.get_seq_length() - new
        if caches.base.get_seq_length() != past or caches.edited.get_seq_length() != past:
            raise ConfigError(
                f"The cache holds {past} tokens that were read without the ensemble (or with "
                "another one inside it). Start from an empty cache inside `model.edited(...)`."
            )
        return caches

    def keep(self) -> None:
        """Put the layers that came up since into the large network's cache."""
        for own in (self.base, self.edited):
            known = {id(layer) for layer in self.large.layers}
            self.large.layers.extend(layer for layer in own.layers if id(layer) not in known)
