"""A large model helped by what an edit taught a small one, while both run side by side."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tuner.deltas.ensemble.log_ratio import LogRatio, LogRatioBatch
from tuner.deltas.ensemble.small_caches import SmallCaches
from tuner.deltas.registry import find_kind, kind_of
from tuner.editing.companions import Companion, Surroundings
from tuner.editing.delta import AdditiveDelta, Delta
from tuner.editing.forward_call import Call
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class EnsembleDelta(Delta):
    """β·(log p_edited − log p_base) of a small model, added to the logits of a large one.

    No weight of the large model changes. Both models read the same token ids: they must share a
    tokenizer, which the editor checks, since a network alone has none.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §6.
    """

    ratio: LogRatio
    strength: float = 1.0
    """β."""
    state_type: ClassVar[type[BaseModel]] = Companion

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Edit what `network` says inside the context, in `forward` and in `generate`.

        Raises:
            BaseMismatch: the small model's change does not fit it.
        """
        # Made here and not at the first text: what does not fit fails before anything is run.
        _ = self.ratio.edited
        if self.strength == 0:
            yield
            return
        handle = network.register_forward_hook(self._add, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def scaled(self, alpha: float) -> Self:
        """Return the ensemble with `alpha` times its strength; the small edit stays as it is."""
        return replace(self, strength=self.strength * alpha)

    def can_change(self, blocks: Int[Tensor, "blocks length"]) -> Bool[Tensor, " blocks"]:
        """Return which blocks of text it can change at all: those that the small edit can."""
        return self.ratio.delta.can_change(blocks)

    def tensors(self) -> dict[str, Tensor]:
        """Return what must be stored, by name: the small model's change."""
        return self.ratio.delta.tensors()

    @property
    def state(self) -> Companion:
        """The small model, and which kind of change the tensors are of it."""
        small = self.ratio.small
        return Companion.model_validate(
            {
                "id": small.id,
                "revision": small.revision,
                "fingerprint": small.fingerprint,
                "dtype": str(small.dtype).removeprefix("torch."),
                "kind": kind_of(self.ratio.delta),
                "strength": self.strength,
            }
        )

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        """Return the ensemble that `state` and `tensors()` described.

        Raises:
            ConfigError: they do not fit together, or the small model cannot be loaded.
            BaseMismatch: the small model is another one now.
        """
        if not isinstance(state, Companion):
            raise ConfigError("An ensemble needs to know its small model.")
        kind = find_kind(state.kind)
        if not issubclass(kind, AdditiveDelta):
            raise ConfigError(
                f"A change of kind {state.kind!r} cannot be written into the small model of an "
                "ensemble."
            )
        change = kind.restore(None, tensors, surroundings)
        return cls(LogRatio(surroundings.companions.recall(state), change), state.strength)

    def describe(self) -> str:
        """Return the size of the small model's change, and how much of it reaches the large."""
        inner = self.ratio.delta.describe()
        return f"{inner}, of {self.ratio.small.id}, to the logits times {self.strength:g}"

    def _add(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> ModelOutput:
        """Add to the logits of a forward pass that `network` has just made.

        Raises:
            ConfigError: the call has no token ids, or another form that cannot be followed.
        """
        call = Call.of("An ensemble", network.forward, args, kwargs)
        if not isinstance(output, ModelOutput):
            raise ConfigError("An ensemble needs named outputs; leave return_dict at its default.")
        device = self.ratio.small.device
        cache = output.past_key_values
        caches = None if cache is None else SmallCaches.within(cache, call.ids.shape[1])
        ratios = self.ratio.read(
            LogRatioBatch(
                ids=call.ids.to(device),
                kept=call.kept.to(device),
                mask=None if call.mask is None else call.mask.to(device),
                position_ids=None if call.position_ids is None else call.position_ids.to(device),
                caches=caches,
            )
        )
        if caches is not None:
            caches.keep()
        # In half precision small shifts would be rounded away: the sum is kept as it is.
        precise = torch.promote_types(output.logits.dtype, torch.float32)
        logits = output.logits.to(precise, copy=True)
        count = min(self.ratio.token_count, logits.shape[-1])
        added = self.strength * ratios.values[:, :count].to(logits)
        shared, places = logits[..., :count], ratios.places.to(logits.device)
        shared[places] = shared[places] + added
        output.logits = logits
        if call.labels is not None:
            output.loss = call.loss(network, logits)
        return output
