"""Edits as text: what is stored of them, and how they stand before a prompt."""

from collections.abc import Sequence
from typing import final

from pydantic import BaseModel, ConfigDict

from tuner.editing.likelihood import Continuation
from tuner.editing.task import Example
from tuner.editing.tokens import TextReader
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
    texts: TextReader,
    edit: EditText,
    joint: str,
    prompt: str,
    continuation: Sequence[int],
    *,
    most: int,
) -> Continuation:
    """Return an edit, `joint`, a prompt and the tokens that follow it, as `most` at most.

    Where they are more, the prompt loses its beginning. The mark that a rendered chat template
    begins with is left out: the text has begun with the edit.

    Source: the inputs of Mitchell et al. 2022 (arXiv:2206.06520) to their counterfactual model,
    whose joint is a space.

    Raises:
        ConfigError: edit and continuation alone are more.
    """
    lead, asked = texts.read([(edit.text, f"{joint}{prompt.removeprefix(texts.mark)}")])[0].parts
    return _within(most, edit, lead, asked, continuation)


def answer_after(
    texts: TextReader, edit: EditText, joint: str, prompt: str, answer: str, *, most: int
) -> tuple[int, Continuation]:
    """Return the same of an answer as text, with the number of the edit's own tokens.

    Raises:
        ConfigError: edit and answer alone are more.
    """
    asked_for = f"{joint}{prompt.removeprefix(texts.mark)}"
    lead, asked, said = texts.read([(edit.text, asked_for, answer)])[0].parts
    return len(lead), _within(most, edit, lead, asked, said)


def _within(
    most: int,
    edit: EditText,
    lead: Sequence[int],
    asked: Sequence[int],
    said: Sequence[int],
) -> Continuation:
    room = most - len(lead) - len(said)
    if room < 1:
        raise ConfigError(
            f"An edit of {len(lead)} tokens and an answer of {len(said)} leave no room for "
            f"a prompt in a context of {most}: {edit.prompt[:60]!r}…"
        )
    ids = (*lead, *asked[-room:])
    return Continuation(ids=(*ids, *said), start=len(ids))
