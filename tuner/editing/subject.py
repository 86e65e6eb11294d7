"""Where in a prompt its subject ends: the token at which facts are looked up and written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from tuner.editing.model import LanguageModel
from tuner.editing.prefixes import prepend
from tuner.errors import EditError


@final
@dataclass(frozen=True)
class LocatedPrompt:
    """A prompt's tokens and the index of the last token of its subject."""

    ids: tuple[int, ...]
    position: int

    def followed_by(self, ids: Sequence[int]) -> "LocatedPrompt":
        """Return the prompt with further tokens behind it."""
        return LocatedPrompt((*self.ids, *ids), self.position)


def locate_subject(
    model: LanguageModel, prompt: str, subject: str | None, *, prefix: str = ""
) -> LocatedPrompt:
    """Return the tokens of `prefix` and `prompt` with the place of the subject's last token.

    The place is found by character offsets, so it does not depend on how a tokenizer splits the
    words around the subject. Without a subject the whole prompt is the subject, the "standard"
    mode of Hewitt et al. 2024. A subject that stands in the prompt more than once is taken where
    it stands last, where the model has read the most.

    Raises:
        EditError: the subject does not stand in the prompt.
    """
    start = _last_place(prompt, subject) if subject else 0
    if start < 0:
        raise EditError(f"The subject {subject!r} does not stand in the prompt {prompt!r}.")
    end = start + len(subject) if subject else len(prompt)
    text = prepend(prefix, prompt)
    ids = tuple(model.encode_prompt(text))
    return LocatedPrompt(ids, _token_before(model, text, len(text) - len(prompt) + end, ids))


def _last_place(prompt: str, subject: str) -> int:
    """Return where the subject stands last, as words of its own if it does so anywhere."""
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    return words[-1].start() if words else prompt.rfind(subject)


def _token_before(model: LanguageModel, text: str, end: int, ids: tuple[int, ...]) -> int:
    """Return the index of the token that holds the last character before `end`."""
    if not text:
        return len(ids) - 1
    if model.tokenizer.is_fast:
        encoded = model.tokenizer(text, return_offsets_mapping=True)
        # Special tokens span no character; a character of several tokens belongs to the last.
        spans = enumerate(encoded["offset_mapping"])
        return max(index for index, (first, last) in spans if first < end and last > first)
    # A tokenizer without offsets: the shortest beginning that spells everything before `end`.
    wanted = len(text[:end].rstrip())
    for index in range(len(ids)):
        spelt = str(model.tokenizer.decode(list(ids[: index + 1]), skip_special_tokens=True))
        if len(spelt) >= wanted:
            return index
    return len(ids) - 1


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
