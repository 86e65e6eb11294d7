"""Where in a prompt its subject ends: the token at which facts are looked up and written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from tuner.editing.model import LanguageModel
from tuner.editing.sampling import prepend
from tuner.errors import EditError


@final
@dataclass(frozen=True)
class LocatedPrompt:
    """A prompt's tokens, those of what follows it, and the last one of the prompt's subject."""

    ids: tuple[int, ...]
    position: int
    """Where the subject's last token stands."""
    start: int
    """Where what follows the prompt starts."""

    @property
    def prompt(self) -> "LocatedPrompt":
        """The prompt alone, in the tokens that it has before what follows."""
        return LocatedPrompt(self.ids[: self.start], self.position, self.start)


def locate_subject(
    model: LanguageModel, prompt: str, subject: str | None, *, prefix: str = "", target: str = ""
) -> LocatedPrompt:
    """Return `prefix`, `prompt` and `target` as tokens, with the subject's last token.

    The place is found by character offsets, so it does not depend on how a tokenizer splits the
    words around the subject. Without a subject the whole prompt is the subject, the "standard"
    mode of Hewitt et al. 2024. A subject that stands in the prompt more than once is taken where
    it stands last, where the model has read the most. Where its last token belongs to the target,
    the one before stands for it: what is written there must come before the target is said.

    Raises:
        EditError: the subject does not stand in the prompt.
    """
    place = _last_place(prompt, subject) if subject else 0
    if place < 0:
        raise EditError(f"The subject {subject!r} does not stand in the prompt {prompt!r}.")
    text = prepend(model, prefix, prompt)
    end = len(text) - len(prompt) + (place + len(subject) if subject else len(prompt))
    read = model.read([(text, target)])[0]
    start = read.ends[0]
    last = read.holder_of(end - 1) if end else start - 1
    return LocatedPrompt(read.ids, min(last, start - 1), start)


def _last_place(prompt: str, subject: str) -> int:
    """Return where the subject stands last, as words of its own if it does so anywhere."""
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    return words[-1].start() if words else prompt.rfind(subject)


def right_padded(
    prompts: Sequence[LocatedPrompt], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "prompts length"], Int[Tensor, "prompts length"], Int[Tensor, " prompts"]]:
    """Return ids, attention mask and positions of a batch.

    The padding always stands on the right, where a causal model cannot see it, whatever side the
    tokenizer would choose.
    """
    length = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[row, : len(prompt.ids)] = 1
    positions = torch.tensor([prompt.position for prompt in prompts])
    return ids.to(device), mask.to(device), positions.to(device)
