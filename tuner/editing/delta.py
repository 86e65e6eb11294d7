"""The change an edit makes, apart from the model: apply, scale, store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, final

import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel
from torch import Tensor, nn

from tuner.editing.adapters import beside, runs_beside
from tuner.errors import BaseMismatch, ConfigError, EditError

if TYPE_CHECKING:
    from tuner.editing.companions import Surroundings


class Delta(ABC):
    """A change of a model. It never alters the model but inside `applied`.

    A subclass is stored as `tensors()` and, if it sets `state_type`, a `state`; `restore` makes it
    again of the two. Its kind is the name by which `tuner.deltas.registry` knows it.
    """

    state_type: ClassVar[type[BaseModel] | None] = None
    """What must be known of it beside the tensors, as it stands in `delta.json`."""

    @abstractmethod
    def applied(self, network: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which `network` is edited; its exact old bits return on exit.

        Raises:
            BaseMismatch: the change was made for another network.
        """
        ...

    @abstractmethod
    def scaled(self, alpha: float) -> Self:
        """Return the change at `alpha` times its strength; 0 changes nothing."""
        ...

    def form(self, network: nn.Module) -> str:
        """Return in which form `applied` holds it: what is judged is what must be served."""
        return "beside the model"

    def can_change(self, blocks: Int[Tensor, "blocks length"]) -> Bool[Tensor, " blocks"]:
        """Return which blocks of text it can change at all; all others stay as they are."""
        return torch.ones(len(blocks), dtype=torch.bool)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what must be stored, by name."""
        ...

    @property
    def state(self) -> BaseModel | None:
        """What must be known beside the tensors, a `state_type`, if anything."""
        return None

    @classmethod
    @abstractmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the change that `state` and `tensors()` described.

        Raises:
            ConfigError: they do not fit together.
            BaseMismatch: a model that it brings along is another one now.
        """
        ...

    @abstractmethod
    def describe(self) -> str:
        """Return its size in words, for tables and logs."""
        ...


class AdditiveDelta(Delta):
    """A change that can be added to another of its kind, and written into a model for good."""

    @property
    @abstractmethod
    def changed(self) -> Collection[str]:
        """The names of the parameters that it writes to."""
        ...

    @abstractmethod
    def write(self, network: nn.Module) -> None:
        """Put the change into `network`, for good.

        Raises:
            BaseMismatch: the change does not fit the network; nothing is written then.
        """
        ...

    @abstractmethod
    def plus(self, other: Self) -> Self:
        """Return the sum of two changes of the same model."""
        ...


@final
@dataclass(frozen=True)
class Dense:
    """A change of every entry of a parameter, in the parameter's shape."""

    values: Tensor

    def to_dense(self, shape: torch.Size) -> Tensor:
        """Return the change in full."""
        return self.values.reshape(shape)

    def inner(self, full: Tensor) -> float:
        """Return the sum of the products of its entries with those of `full`."""
        return float((self.values.reshape(full.shape).to(full) * full).sum(dtype=torch.float64))

    def scaled(self, alpha: float) -> Dense:
        """Return the change times `alpha`."""
        return Dense(self.values * alpha)

    def parts(self) -> dict[str, Tensor]:
        """Return the stored tensors by their role."""
        return {"values": self.values}


@final
@dataclass(frozen=True)
class LowRank:
    """A change `left @ right` of a matrix, in the parameter's own orientation."""

    left: Tensor  # rows × rank
    right: Tensor  # rank × columns

    def to_dense(self, shape: torch.Size) -> Tensor:
        """Return the change in full."""
        return (self.left @ self.right).reshape(shape)

    def inner(self, full: Tensor) -> float:
        """Return the sum of the products of its entries with those of `full`."""
        projected = self.left.to(full).T @ full
        return float((projected * self.right.to(full)).sum(dtype=torch.float64))

    def scaled(self, alpha: float) -> LowRank:
        """Return the change times `alpha`."""
        return LowRank(self.left * alpha, self.right)

    def parts(self) -> dict[str, Tensor]:
        """Return the stored tensors by their role."""
        return {"left": self.left, "right": self.right}


@final
@dataclass(frozen=True)
class Rows:
    """A change of some rows of a matrix, such as single embeddings."""

    index: Tensor  # rows
    values: Tensor  # rows × columns

    def to_dense(self, shape: torch.Size) -> Tensor:
        """Return the change in full, zero outside its rows."""
        dense = self.values.new_zeros(shape)
        return dense.index_copy(0, self.index.to(dense.device), self.values)

    def inner(self, full: Tensor) -> float:
        """Return the sum of the products of its entries with those of `full`."""
        rows = full[self.index.to(full.device)]
        return float((self.values.to(full) * rows).sum(dtype=torch.float64))

    def scaled(self, alpha: float) -> Rows:
        """Return the change times `alpha`."""
        return Rows(self.index, self.values * alpha)

    def parts(self) -> dict[str, Tensor]:
        """Return the stored tensors by their role."""
        return {"index": self.index, "values": self.values}


Change = Dense | LowRank | Rows


@final
@dataclass(frozen=True)
class WeightDelta(AdditiveDelta):
    """An additive change of weights: scalable, composable, exportable.

    Names are those of `network.named_parameters()`.
    """

    changes: Mapping[str, Change]

    @property
    def changed(self) -> Collection[str]:
        """The names of the parameters that it writes to."""
        return self.changes.keys()

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Edit `network` inside the context.

        Low-rank changes of half-precision weights run beside them, as adapters do; all others
        are written into the weights, as into a merged model.

        Raises:
            BaseMismatch: a parameter is absent or has another shape.
        """
        parameters = dict(network.named_parameters())
        for name, change in self.changes.items():
            _check_fit(name, change, parameters.get(name))
        written = self._written(network)
        adapters = {
            name: (change.left, change.right)
            for name, change in self.changes.items()
            if name not in written.changes and isinstance(change, LowRank)
        }
        kept = {name: parameters[name].detach().clone() for name in written.changes}
        try:
            written.write(network)
            with beside(network, adapters):
                yield
        finally:
            with torch.no_grad():
                for name, old in kept.items():
                    parameters[name].copy_(old)

    def form(self, network: nn.Module) -> str:
        """Return the form that `applied` gives it: `adapter`, or `merged:` and the precision.

        In float32 an adapter and a merged model are the same to rounding.
        """
        written = self._written(network).changes
        if not written and self.changes:
            return "adapter"
        name = next(iter(written), None)
        dtype = torch.float32 if name is None else network.get_parameter(name).dtype
        return f"merged:{str(dtype).removeprefix('torch.')}"

    def merged(self, network: nn.Module) -> WeightDelta:
        """Return the change as a merged model has it: every entry, none beside the weights."""
        return WeightDelta(
            {
                name: Dense(change.to_dense(network.get_parameter(name).shape))
                for name, change in self.changes.items()
            }
        )

    def _written(self, network: nn.Module) -> WeightDelta:
        """Return the changes that are added to the weights."""
        return WeightDelta(
            {
                name: change
                for name, change in self.changes.items()
                if not (isinstance(change, LowRank) and runs_beside(network, name))
            }
        )

    @torch.no_grad()
    def write(self, network: nn.Module) -> None:
        """Add the change to the weights of `network`, for good.

        The sum is formed in float32 at least and then rounded to the parameter's dtype, so that a
        half-precision model sees the nearest weights it can hold.

        Raises:
            BaseMismatch: a parameter is absent or has another shape; nothing is written then.
        """
        parameters = dict(network.named_parameters())
        for name, change in self.changes.items():
            _check_fit(name, change, parameters.get(name))
        for name, change in self.changes.items():
            weight = parameters[name]
            precise = torch.promote_types(weight.dtype, torch.float32)
            delta = change.to_dense(weight.shape).to(weight.device, precise)
            weight.copy_(weight.to(precise) + delta)

    def scaled(self, alpha: float) -> WeightDelta:
        """Return the change at `alpha` times its size."""
        return WeightDelta({name: change.scaled(alpha) for name, change in self.changes.items()})

    def plus(self, other: WeightDelta) -> WeightDelta:
        """Return the sum of two changes of the same model."""
        changes = dict(self.changes)
        for name, change in other.changes.items():
            changes[name] = _sum(changes[name], change) if name in changes else change
        return WeightDelta(changes)

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored tensors, named `parameter::role`."""
        return {
            f"{name}::{role}": tensor.detach().cpu().contiguous()
            for name, change in self.changes.items()
            for role, tensor in change.parts().items()
        }

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> WeightDelta:
        """Return the delta that `tensors()` described.

        Raises:
            ConfigError: the names are not those of a weight delta.
        """
        roles: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, mark, role = key.rpartition("::")
            if not mark:
                raise ConfigError(f"{key!r} is not the name of a part of a weight delta.")
            roles.setdefault(name, {})[role] = tensor
        if not roles:
            raise ConfigError("A weight delta must change at least one parameter.")
        if "" in roles:
            raise ConfigError("A weight delta has a change without the name of a parameter.")
        return cls({name: _change_from(name, parts) for name, parts in sorted(roles.items())})

    def describe(self) -> str:
        """Return the number of parameters touched and of numbers stored."""
        stored = sum(tensor.numel() for tensor in self.tensors().values())
        kinds = sorted({type(change).__name__ for change in self.changes.values()})
        return f"{len(self.changes)} parameters ({', '.join(kinds)}), {stored:,} numbers"


def check_finite(delta: Delta) -> None:
    """Verify that all numbers of a delta are finite.

    Raises:
        EditError: one is NaN or infinite.
    """
    for name, tensor in delta.tensors().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise EditError(f"The edit diverged: {name} holds NaN or infinite values.")


_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_real(what: str, *tensors: Tensor) -> None:
    """Verify that stored tensors hold real numbers, all in one precision.

    Raises:
        ConfigError: they are of another type, or of several.
    """
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1 or not kinds <= set(_REAL):
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ConfigError(
            f"A delta holds real numbers in one precision, of 16 bits or more, but {what} is "
            f"stored as {names}."
        )


def _sum(one: Change, other: Change) -> Change:
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        left = torch.cat([one.left, other.left], dim=1)
        right = torch.cat([one.right, other.right], dim=0)
        rows, rank, columns = *left.shape, right.shape[1]
        if rank <= min(rows, columns):
            return LowRank(left, right)
        # No matrix has a higher rank: a sum of many changes must not grow with their number.
        if rows <= columns:
            return LowRank(torch.eye(rows, dtype=left.dtype, device=left.device), left @ right)
        return LowRank(left @ right, torch.eye(columns, dtype=left.dtype, device=left.device))
    if isinstance(one, Rows) and isinstance(other, Rows):
        index, place = torch.unique(torch.cat([one.index, other.index]), return_inverse=True)
        values = torch.cat([one.values, other.values])
        summed = values.new_zeros(len(index), *values.shape[1:]).index_add(0, place, values)
        return Rows(index, summed)
    shape = next((c.values.shape for c in (one, other) if isinstance(c, Dense)), None)
    if shape is None:
        raise ConfigError("A low-rank change and a change of rows cannot be added.")
    return Dense(one.to_dense(shape) + other.to_dense(shape))


def _check_fit(name: str, change: Change, weight: Tensor | None) -> None:
    if weight is None:
        raise BaseMismatch(f"The delta changes {name!r}, which the model does not have.")
    match change:
        case Dense(values):
            fits = values.shape == weight.shape
        case LowRank(left, right):
            fits = (left.shape[0], right.shape[1]) == tuple(weight.shape)
        case Rows(index, values):
            fits = (
                weight.ndim > 0
                and values.shape[1:] == weight.shape[1:]
                and len(index) == len(values)
                and (len(index) == 0 or 0 <= int(index.min()) <= int(index.max()) < len(weight))
            )
    if not fits:
        raise BaseMismatch(
            f"The delta's change of {name!r} does not fit its shape {tuple(weight.shape)}."
        )
    if not weight.is_floating_point():
        raise BaseMismatch(f"The delta changes {name!r}, which holds no real numbers.")


def _change_from(name: str, parts: dict[str, Tensor]) -> Change:
    match sorted(parts):
        case ["values"]:
            check_real(f"the change of {name!r}", parts["values"])
            return Dense(parts["values"])
        case ["left", "right"]:
            left, right = parts["left"], parts["right"]
            check_real(f"the change of {name!r}", left, right)
            inner = left.shape[-1:] == right.shape[:1] and 0 not in right.shape[:1]
            if left.ndim != 2 or right.ndim != 2 or not inner:
                raise ConfigError(
                    f"The two factors of the change of {name!r} do not fit together: they are "
                    f"{tuple(left.shape)} and {tuple(right.shape)}."
                )
            return LowRank(left, right)
        case ["index", "values"]:
            index, values = parts["index"], parts["values"]
            check_real(f"the change of {name!r}", values)
            if index.dtype is not torch.int64 or index.ndim != 1 or values.ndim == 0:
                raise ConfigError(
                    f"The rows that change in {name!r} must be given as a list of int64, with as "
                    f"many rows of values, but are {tuple(index.shape)} of {index.dtype} and "
                    f"{tuple(values.shape)}."
                )
            distinct = len(torch.unique(index)) == len(index)
            if len(index) != len(values) or not distinct or bool((index < 0).any()):
                raise ConfigError(
                    f"The rows that change in {name!r} must be numbers from 0, each once, with as "
                    "many rows of values."
                )
            return Rows(index, values)
        case roles:
            raise ConfigError(f"The parts {roles} of {name!r} form no change that tuner knows.")
