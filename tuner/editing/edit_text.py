"""Edits as text: what is stored of them, and how they stand before a prompt."""

from collections.abc import Sequence
from typing import final

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from tuner.editing.likelihood import Continuation
from tuner.editing.task import Example
from tuner.errors import ConfigError


@final
class EditText(BaseModel):
    """A prompt and what should follow it, as a memory stores them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    target: str

    @classmethod
    def of(cls, example: Example) -> "EditText":
        """Return the text of an example."""
        return cls(prompt=example.prompt, target=example.target)

    @property
    def text(self) -> str:
        """Prompt and target in one."""
        return f"{self.prompt}{self.target}"


def continuation_after(
    tokenizer: PreTrainedTokenizerBase,
    edit: EditText,
    joint: str,
    prompt: str,
    continuation: Sequence[int],
    *,
    most: int,
) -> Continuation:
    """Return an edit, `joint`, a prompt and what follows it, as `most` tokens at most.

    Where they are more, the prompt loses its beginning.

    Source: the inputs of Mitchell et al. 2022 (arXiv:2206.06520) to their counterfactual model,
    whose joint is a space.

    Raises:
        ConfigError: edit and continuation alone are more.
    """
    lead = tokenizer.encode(edit.text, add_special_tokens=True)
    asked = tokenizer.encode(f"{joint}{prompt}", add_special_tokens=False)
    room = most - len(lead) - len(continuation)
    if room < 1:
        raise ConfigError(
            f"An edit of {len(lead)} tokens and an answer of {len(continuation)} leave no room for "
            f"a prompt in a context of {most}: {edit.prompt[:60]!r}…"
        )
    ids = (*lead, *asked[-room:])
    return Continuation(ids=(*(int(token) for token in ids), *continuation), start=len(ids))


def text_of_prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return a prompt as text; of several documents, the one that it ends in."""
    end = tokenizer.eos_token_id
    document = list(ids)
    while end in document[:-1]:
        document = document[document.index(end) + 1 :]
    return str(tokenizer.decode(document, skip_special_tokens=True))
