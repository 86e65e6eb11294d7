"""Layers of our own in transformers' key-value cache, beside those of the network that it serves.

Whatever transformers does to a cache (beams, cropping, copies) is done to them too.
"""

from transformers.cache_utils import Cache, DynamicLayer


class OwnLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that keeps all keys and values; a subclass tells whose they are."""


def append_layer(cache: Cache) -> None:
    """Add an empty layer, of the kind that the cache makes for itself."""
    cache.layers.append((cache.layer_class_to_replicate or DynamicLayer)())


def layers_of(cache: Cache, kind: type[OwnLayer]) -> Cache:
    """Return a cache of the layers of one kind, which makes more of them where it needs some."""
    # Layers write in place, so both caches see the same tensors.
    own = Cache(layer_class_to_replicate=kind)
    own.layers = [layer for layer in cache.layers if isinstance(layer, kind)]
    return own
