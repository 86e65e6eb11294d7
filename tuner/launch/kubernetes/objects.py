"""What all Kubernetes objects of ours have in common: camelCase, frozen, nothing unknown."""

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

_LABEL_1123 = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_LABEL_KEY = rf"({_LABEL_1123}(\.{_LABEL_1123})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_MOST_IN_LABEL = 63
_MOST_IN_SUBDOMAIN = 253


class KubernetesObject(BaseModel):
    """A part of a manifest. Its fields are the subset of the API's that we write.

    What is left out of an object is left out of its manifest, so that the API's own defaults hold.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
    )

    refused: ClassVar[Mapping[str, str]] = {}
    """Fields that the API has and we never write, each with the reason."""

    @model_validator(mode="before")
    @classmethod
    def _knows_every_field(cls, values: Any) -> Any:
        """Refuse an unknown field, saying why or offering the nearest one."""
        if not isinstance(values, Mapping):
            return values
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in values:
            if key in cls.refused:
                raise ValueError(f"`{key}` must not be set: {cls.refused[key]}")
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                raise ValueError(f"{cls.__name__} has no field `{key}` here.{hint}")
        return values

    def manifest(self) -> dict[str, Any]:
        """Return the object as plain values, named as in the API; what was not set is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def _is_dns_1123(value: str) -> str:
    if len(value) > _MOST_IN_LABEL or not re.fullmatch(_LABEL_1123, value):
        raise ValueError(
            "must be a DNS-1123 label: at most 63 lower-case letters, digits and hyphens, "
            "beginning and ending with a letter or digit"
        )
    return value


def _is_subdomain(value: str) -> str:
    parts = value.split(".")
    if len(value) > _MOST_IN_SUBDOMAIN or not all(re.fullmatch(_LABEL_1123, one) for one in parts):
        raise ValueError(
            "must be a DNS-1123 subdomain: lower-case letters, digits, hyphens and dots, "
            "at most 253 of them"
        )
    return value


def _is_dns_1035(value: str) -> str:
    if len(value) > _MOST_IN_LABEL or not re.fullmatch(_LABEL_1035, value):
        raise ValueError(
            "must be a DNS-1035 label: at most 63 lower-case letters, digits and hyphens, "
            "beginning with a letter and ending with a letter or digit"
        )
    return value


def _are_labels(values: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in values.items():
        if not re.fullmatch(_LABEL_KEY, key) or len(key.rpartition("/")[2]) > _MOST_IN_LABEL:
            raise ValueError(f"the key {key!r} must be a label's: `name` or `prefix.domain/name`")
        if not re.fullmatch(_LABEL_VALUE, value) or len(value) > _MOST_IN_LABEL:
            raise ValueError(
                f"the value {value!r} of {key} must be a label's: at most 63 letters, digits, "
                "`-`, `_` and `.`, beginning and ending with a letter or digit"
            )
    return values


Dns1123Label = Annotated[str, AfterValidator(_is_dns_1123)]
Dns1035Label = Annotated[str, AfterValidator(_is_dns_1035)]
Subdomain = Annotated[str, AfterValidator(_is_subdomain)]
Labels = Annotated[dict[str, str], AfterValidator(_are_labels)]

_FACTORS = {
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "": Decimal(1),
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|Pi|m|k|M|G|T|P|)")


def amount(quantity: str) -> Decimal:
    """Return what a Kubernetes quantity such as `500m` or `4Gi` stands for.

    Raises:
        ValueError: it is not a quantity.
    """
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(
            f"must be a quantity of Kubernetes such as 500m, 2 or 4Gi, but got {quantity!r}"
        )
    return Decimal(match[1]) * _FACTORS[match[2]]


def _is_positive_quantity(value: str) -> str:
    if amount(value) <= 0:
        raise ValueError(f"must be more than nothing, but got {value!r}")
    return value


def _as_text(value: Any) -> Any:
    """Return a number as the text that it is in a manifest: YAML reads `cpu: 2` as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_positive_quantity)]


class ObjectMeta(KubernetesObject):
    """Name, namespace, labels and annotations of an object."""

    name: Subdomain | None = None
    namespace: Dns1123Label | None = None
    labels: Labels | None = None
    annotations: dict[str, str] | None = None
