"""Memories that answer in the model's place: from the end of a prompt on, their logits count."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from tuner.deltas.memory.memory import MemoryDelta
from tuner.editing.prompts import Turns, aside
from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class Asked:
    """A prompt in the scope of an entry, and what has followed it so far, as token ids."""

    entry: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class AnsweringMemory(MemoryDelta):
    """A memory whose answers take the place of the model's own where a prompt is in scope."""

    @abstractmethod
    def answers(
        self, network: PreTrainedModel, asked: Sequence[Asked]
    ) -> list[Float[Tensor, "places tokens"]]:
        """Return logits after each row's prompt and after each token of its continuation.

        Tokens beyond their last column count as impossible. It is called `aside`: `network`
        answers as the base model.
        """
        ...

    @contextmanager
    def applied(self, network: PreTrainedModel) -> Iterator[None]:
        """Answer instead of `network` inside the context, in `forward` and in `generate`.

        Raises:
            BaseMismatch: the memory was made for another network.
        """
        self.check_fit(network)
        if self.strength == 0:
            yield
            return
        # Forward hooks run in the order of their registration: ours must come before the one that
        # ends the turn.
        turns: list[Turns] = []

        def answer(_: PreTrainedModel, args: tuple[Any, ...], output: Any) -> Any:
            return self._answer(network, turns[0], output)

        handle = network.register_forward_hook(answer)
        try:
            with Turns.followed(network, beams_with_cache=False) as followed:
                turns.append(followed)
                yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _answer(self, network: PreTrainedModel, turns: Turns, output: Any) -> Any:
        turn, call = turns.turn, turns.call
        if turn is None or call is None:
            return output
        if not isinstance(output, ModelOutput):
            raise ConfigError("A memory needs named outputs; leave return_dict at its default.")
        prompts = turn.prompts
        with aside():
            if turn.routes is None:
                turn.routes = self.route(network, prompts)
            entries = turn.routes.entries.tolist()
            rows = turn.routes.inside(self.strength).nonzero().flatten().tolist()
            if not rows:
                return output
            said, continued = prompts.tokens(), turn.continuations()
            asked = [Asked(entries[row], tuple(said[row]), tuple(continued[row])) for row in rows]
            answers = self.answers(network, asked)
        logits = output.logits.clone()
        last = prompts.last.tolist()
        columns = (call.kept + turn.past).tolist()
        for row, answer in zip(rows, answers, strict=True):
            for place, column in enumerate(columns):
                if 0 <= column - last[row] < len(answer):
                    known = answer[column - last[row]].to(logits)
                    logits[row, place, : len(known)] = known
                    logits[row, place, len(known) :] = torch.finfo(logits.dtype).min
        output.logits = logits
        if call.labels is not None:
            output.loss = call.loss(network, logits)
        return output
