"""Which layers an editor changes: by relative depth, which serves all models, or by number."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from tuner.editing.companions import Companions
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel
from tuner.errors import ConfigError


class OneLayerEditor(Editor):
    """An editor of the MLP of one layer."""

    depth: float = Field(ge=0, le=1, description="The edited layer, as a fraction of all layers.")
    layer: int | None = Field(
        default=None,
        ge=0,
        description="The edited layer by its number, from 0, in place of `depth`.",
    )

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the model has the layer, and an MLP of linear maps in it.

        Raises:
            ConfigError: it has not.
        """
        model.architecture.mlp_modules(self.layer_of(model))

    def layer_of(self, model: LanguageModel) -> int:
        """Return the number of the edited layer.

        Raises:
            ConfigError: the model has no layer of that number.
        """
        if self.layer is None:
            return round(self.depth * (model.layer_count - 1))
        _check_number("layer", self.layer, model.layer_count)
        return self.layer


class LayerBandEditor(Editor):
    """An editor of neighbouring layers."""

    first_layer: int | None = Field(
        default=None,
        ge=0,
        description="The band's first layer by its number, from 0, in place of a relative depth; "
        "alone it is the only one.",
    )
    last_layer: int | None = Field(
        default=None,
        ge=0,
        description="The band's last layer by its number, from 0; alone it is the only one.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        first, last = self.first_layer, self.last_layer
        if first is not None and last is not None and first > last:
            raise ValueError(f"first_layer <= last_layer must hold, but got {first} and {last}.")
        return self

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the model has the layers.

        Raises:
            ConfigError: it has not.
        """
        self.layers(model.layer_count)

    def layers(self, count: int) -> list[int]:
        """Return the edited layers of a model of `count` layers, lowest first.

        Raises:
            ConfigError: the model has no layer of a number that was given.
        """
        given = [number for number in (self.first_layer, self.last_layer) if number is not None]
        if not given:
            return list(self.band(count))
        for name in ("first_layer", "last_layer"):
            if (number := getattr(self, name)) is not None:
                _check_number(name, number, count)
        return list(range(given[0], given[-1] + 1))

    @abstractmethod
    def band(self, count: int) -> Sequence[int]:
        """Return the layers by relative depth, in a model of `count` layers, lowest first."""
        ...


def _check_number(field: str, number: int, count: int) -> None:
    if number >= count:
        raise ConfigError(
            f"{field} must be a layer of the model, which has {count} (0 to {count - 1}), but got "
            f"{number}."
        )


def layer_band(count: int, center: float, width: float) -> range:
    """Return the contiguous layers around a relative depth, clipped to those that exist.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), whose bands stand around the middle layer:
    with c = ⌈width · count⌉ they reach from mid − ⌊c/2⌋ to mid + ⌈c/2⌉, which is one layer for a
    width of 0 and two at least for any other. Their code may name one layer past the end; here a
    band stops at the last layer.
    """
    middle = min(int(center * count), count - 1)
    # A width such as 0.28 * 25 must not become 8 through a rounding error of the product.
    reach = -int(-(width * count) // 1) if (width * count) % 1 > 1e-9 else round(width * count)
    return range(max(0, middle - reach // 2), min(count, middle + (reach + 1) // 2 + 1))
