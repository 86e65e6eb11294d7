"""Text as a model reads it: tokens of the whole text, and where its pieces begin in them.

A prompt and its target, or an edit, a prompt and its answer, are pieces of one text. Encoded apart
they have other tokens than together: many tokenizers put a blank before each text that they are
given, some an end mark behind it. So the pieces are joined first and encoded once, and the tokens
are dealt out by the characters that they stand for.

One rule holds everywhere: a token belongs to the piece in which its last character stands. So one
that reaches over the border of prompt and target belongs to the target, whose first characters
nothing else says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tuner.errors import ConfigError


@final
@dataclass(frozen=True)
class Pieces:
    """The tokens of a text, and which of them each of its pieces has."""

    ids: tuple[int, ...]
    """All tokens, behind the special ones that a text begins with."""
    ends: tuple[int, ...]
    """Where in `ids` each piece is over; the special tokens count to the first piece."""
    spans: tuple[tuple[int, int], ...]
    """The characters that each token stands for; none for the special tokens in front."""

    @property
    def parts(self) -> list[tuple[int, ...]]:
        """The tokens of each piece."""
        starts = (0, *self.ends[:-1])
        return [self.ids[start:end] for start, end in zip(starts, self.ends, strict=True)]

    def behind(self, token: int) -> "Pieces":
        """Return the same text behind a token, which counts to the first piece."""
        ends = tuple(end + 1 for end in self.ends)
        return Pieces((token, *self.ids), ends, ((0, 0), *self.spans))

    def holder_of(self, character: int) -> int:
        """Return the index of the token that holds a character; of several, the last one.

        Of a character that the tokenizer leaves out it is the one before.
        """
        held = (
            index
            for index, (first, last) in enumerate(self.spans)
            if first <= character and last > first
        )
        return max(held, default=0)


@final
class TextReader:
    """Encodes text as a model reads it, by its tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer.

        Raises:
            ConfigError: it cannot tell which characters its tokens stand for.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not tokenizer.is_fast or not isinstance(backend, Tokenizer):
            raise ConfigError(
                f"The tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r} does not "
                "tell which characters its tokens stand for, so a target cannot be told from its "
                "prompt. Give the model a tokenizer.json, as `convert_slow_tokenizer` of "
                "transformers writes it."
            )
        self._backend = _untrimmed(backend) if _trims(backend) else backend
        self._tokenizer = tokenizer
        self.lead, self.trail = special_tokens_around(tokenizer)
        self.mark = "".join(tokenizer.convert_ids_to_tokens(list(self.lead)))
        """How the special tokens in front are spelled where a text brings them itself."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special ones."""
        backend = without_batching(self._backend)
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoded.ids for encoded in encodings]

    def read(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        """Return the tokens of each text, which is given in pieces.

        A text that begins with the special tokens already, as a rendered chat template does, does
        not get them twice.
        """
        joined = ["".join(pieces) for pieces in texts]
        encodings = without_batching(self._backend).encode_batch(joined, add_special_tokens=False)
        return [
            self._dealt_out(pieces, tuple(encoded.ids), encoded.offsets)
            for pieces, encoded in zip(texts, encodings, strict=True)
        ]

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """Return a prompt as text without what stands around it; what is special inside it stays.

        Of several documents it is the one that the prompt ends in.
        """
        end = self._tokenizer.eos_token_id
        document = list(ids)
        while end in document[:-1]:
            document = document[document.index(end) + 1 :]
        if tuple(document[: len(self.lead)]) == self.lead:
            document = document[len(self.lead) :]
        if document[-1:] == [end]:
            document.pop()
        return str(self._tokenizer.decode(document))

    def _dealt_out(
        self, pieces: Sequence[str], ids: tuple[int, ...], spans: Sequence[tuple[int, int]]
    ) -> Pieces:
        spelled_out = ids[: len(self.lead)] == self.lead
        lead = () if spelled_out else self.lead
        ends, token = [], len(self.lead) if spelled_out else 0
        for border in accumulate(map(len, pieces)):
            # Before the first character nothing has been said: what a tokenizer puts there, such
            # as a blank of its own, belongs to what follows.
            while border > 0 and token < len(ids) and spans[token][1] <= border:
                token += 1
            ends.append(len(lead) + token)
        ends[-1] = len(lead) + len(ids)
        return Pieces((*lead, *ids), tuple(ends), (*((0, 0) for _ in lead), *spans))


def without_batching(backend: Tokenizer) -> Tokenizer:
    """Return the tokenizer such that it neither pads nor cuts.

    What was asked of it once, or stands in its file, it goes on doing; transformers sets both anew
    for each call of its own.
    """
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    return backend


def special_tokens_around(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer puts before each text, and those behind it."""
    special = set(tokenizer.all_special_ids)
    for probe in _probes(tokenizer):
        plain = tokenizer.encode(probe, add_special_tokens=False)
        if plain and not special.intersection(plain):
            framed = tokenizer.encode(probe, add_special_tokens=True)
            for start in range(len(framed) - len(plain) + 1):
                if framed[start : start + len(plain)] == plain:
                    return tuple(framed[:start]), tuple(framed[start + len(plain) :])
    return (), ()


def _probes(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    yield "a"
    yield from tokenizer.get_vocab()


def _trims(backend: Tokenizer) -> bool:
    """Return whether blanks are left out of the characters that a token is said to stand for."""
    processor = backend.post_processor
    return processor is not None and b'"trim_offsets":true' in processor.__getstate__()


def _untrimmed(backend: Tokenizer) -> Tokenizer:
    """Return a copy that tells of all characters; it puts no special tokens around a text."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = None
    return copy
