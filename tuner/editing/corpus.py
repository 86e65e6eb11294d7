"""General text, cut into the blocks on which deviation is measured."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Protocol, final

import torch
from jaxtyping import Int
from torch import Tensor

from tuner.editing.model import LanguageModel
from tuner.editing.providers import get_provider, is_provided
from tuner.errors import ConfigError, TaskError
from tuner.files.json_file import JsonError, parse_json
from tuner.files.paths import absolute
from tuner.files.text_file import is_folder, open_file, read_lines
from tuner.validation import show_path, show_value


class TextPart(StrEnum):
    """The four disjoint uses of general text."""

    SEARCH = "search"  # deviation during the search
    CONFIRMATION = "confirmation"  # certificates of the winners, never seen before
    AUXILIARY = "auxiliary"  # what editors may read, for instance for a KL term
    GRADIENT = "gradient"  # the mean gradient, which knows the linear part of all edits


_BUILTIN_TEXT = "builtin:world"
# Of fewer blocks nothing can be said.
_LEAST_BLOCKS = 8

DEFAULT_TOKENS = {
    TextPart.SEARCH: 100_000,
    TextPart.CONFIRMATION: 600_000,
    TextPart.AUXILIARY: 50_000,
    TextPart.GRADIENT: 100_000,
}


@final
@dataclass(frozen=True)
class Corpus:
    """Blocks of general text of one length, in a random but fixed order."""

    name: str
    blocks: Int[Tensor, "blocks length"]

    @cached_property
    def hash(self) -> str:
        """A hash of the tokens, their order and the block length."""
        content = self.blocks.to(torch.int64).contiguous().numpy().tobytes()
        return hashlib.sha256(f"{tuple(self.blocks.shape)}".encode() + content).hexdigest()

    @property
    def predicted_tokens(self) -> int:
        """The number of tokens that have a predecessor within their block."""
        return self.blocks.shape[0] * (self.blocks.shape[1] - 1)


class DocumentSource(Protocol):
    """Where general documents come from."""

    @property
    def name(self) -> str:
        """What certificates call this source."""
        ...

    def documents(self, part: TextPart) -> Iterator[str]:
        """Return the part's documents; no document stands in two parts."""
        ...


@final
@dataclass(frozen=True)
class BuiltinDocuments:
    """The generated text of the built-in world: as much as is asked for."""

    seed: int = 0

    @property
    def name(self) -> str:
        """What certificates call this source."""
        return f"builtin:world (seed {self.seed})"

    def documents(self, part: TextPart) -> Iterator[str]:
        """Return the part's documents; no document stands in two parts."""
        return get_provider("builtin").general_documents(part.value, self.seed)


@final
@dataclass(frozen=True)
class FileDocuments:
    """A user's file, or a folder of such files: one document per line, plain or as JSON.

    JSON documents have a `text`; the name says which it is (.jsonl, .ndjson, .json). A folder's
    other files than these and .txt are left alone.

    A document's part follows from its own hash, so it never changes when the file grows.
    """

    path: Path

    @property
    def name(self) -> str:
        """What certificates call this source."""
        return self.path.name

    def documents(self, part: TextPart) -> Iterator[str]:
        """Return the part's documents; no document stands in two parts.

        Raises:
            TaskError: a line is malformed.
        """
        seen: set[bytes] = set()
        for text in self._texts():
            digest = hashlib.sha256(text.encode()).digest()
            # A repeated document would count its noise twice.
            if digest not in seen and _part_of(digest) is part:
                seen.add(digest)
                yield text

    def check(self) -> None:
        """Verify that the file, or each file of the folder, can be read.

        Raises:
            ConfigError: one cannot, or the folder has none.
        """
        if not self.files:
            raise ConfigError(
                f"{show_path(self.path)}: a folder of general text needs files named *.txt or "
                "*.jsonl, but has none."
            )
        for path in self.files:
            with open_file(path):
                pass

    @property
    def files(self) -> list[Path]:
        """The files that are read, in the order of their names."""
        if not is_folder(self.path):
            return [self.path]
        return [
            path
            for path in sorted(self.path.iterdir())
            if path.suffix.lower() in (*_JSON_LINES, ".txt") and path.is_file()
        ]

    def _texts(self) -> Iterator[str]:
        for path in self.files:
            as_json = path.suffix.lower() in _JSON_LINES
            for number, line in read_lines(path, TaskError):
                text = self._text_of(line, path, number) if as_json else line.strip()
                if text.strip():
                    yield text

    def _text_of(self, line: str, path: Path, number: int) -> str:
        if not line.strip():
            return ""
        where = f"{show_path(path)}:{number}"
        try:
            document = parse_json(line)
        except JsonError as error:
            raise TaskError(
                f"{where}: each line must be an object with a `text`, but is not valid JSON: "
                f"{error}."
            ) from None
        if not isinstance(document, dict) or "text" not in document:
            raise TaskError(f"{where}: each line must be an object with a `text`.")
        text = document["text"]
        if not isinstance(text, str):
            raise TaskError(f"{where}: `text` must be a string, but is {show_value(text)}.")
        return text


_JSON_LINES = (".jsonl", ".ndjson", ".json")


def _part_of(digest: bytes) -> TextPart:
    # A tenth for editors, two tenths to search on, three for the gradient, four to confirm on.
    bucket = digest[0] % 10
    if bucket == 0:
        return TextPart.AUXILIARY
    if bucket <= 2:
        return TextPart.SEARCH
    return TextPart.GRADIENT if bucket <= 5 else TextPart.CONFIRMATION


@final
class GeneralText:
    """General text as one model reads it: three disjoint corpora, tokenised when first used."""

    def __init__(
        self,
        source: DocumentSource,
        model: LanguageModel,
        *,
        block_length: int | None = None,
        tokens: dict[TextPart, int] | None = None,
    ) -> None:
        self.source = source
        self._model = model
        # Published blocks are 500 tokens; the built-in models were trained on windows of 64.
        default = 64 if isinstance(source, BuiltinDocuments) else 512
        self.block_length = block_length or min(default, model.context_length)
        self._tokens = DEFAULT_TOKENS | {TextPart.AUXILIARY: _for_editors(model)} | (tokens or {})
        self._corpora: dict[TextPart, Corpus] = {}

    def corpus(self, part: TextPart) -> Corpus:
        """Return the part's blocks.

        Raises:
            TaskError: the source has less than eight blocks of text for this part.
        """
        if part not in self._corpora:
            self._corpora[part] = self._cut(part, self._tokens[part])
        return self._corpora[part]

    @cached_property
    def source_hash(self) -> str:
        """A hash of what the gradient's part begins with: the same as the text grows.

        Raises:
            TaskError: the source has less than eight blocks of text for this part.
        """
        begin = self._cut(TextPart.GRADIENT, _LEAST_BLOCKS * self.block_length, in_order=True)
        return begin.hash

    def _cut(self, part: TextPart, wanted: int, *, in_order: bool = False) -> Corpus:
        # Each block is read as a text of its own, so it begins as the family's texts begin.
        lead = list(self._model.texts.lead)
        own = self.block_length - len(lead)
        if own < 1:
            raise ConfigError(
                f"Blocks of general text must be longer than the {len(lead)} special tokens that "
                f"each begins with, but got {self.block_length}."
            )
        stream: list[int] = []
        for batch in _batches(self.source.documents(part), 256):
            for ids in self._model.texts.encode(batch):
                stream.extend(ids)
                stream.append(self._model.end_id)
            if len(stream) >= wanted:
                break
        count = min(len(stream) // own, wanted // self.block_length)
        if count < _LEAST_BLOCKS:
            raise TaskError(
                f"{self.source.name}: the {part} part holds {len(stream):,} tokens; at least "
                f"{_LEAST_BLOCKS * self.block_length:,} are needed (100,000 or more are advised)."
            )
        text = torch.tensor(stream[: count * own]).reshape(count, own)
        blocks = torch.cat((torch.tensor(lead, dtype=torch.long).expand(count, -1), text), dim=1)
        # A sequential test reads from the front: the order must say nothing about the content.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return Corpus(f"{self.source.name}, {part}", blocks if in_order else blocks[order])


# Second moments of an MLP's inputs need some tokens for each of them.
_TOKENS_PER_INPUT = 5


def _for_editors(model: LanguageModel) -> int:
    """Return how much text editors may read: the default, or more for a wide MLP."""
    least = DEFAULT_TOKENS[TextPart.AUXILIARY]
    try:
        module = model.network.get_submodule(model.architecture.mlp_modules(0)[-1])
    except ConfigError:  # no method that takes them can edit such a model
        return least
    weight: Tensor = module.weight
    return max(least, _TOKENS_PER_INPUT * max(weight.shape))


def _batches(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def resolved_text(name: str, start: Path | None = None) -> str:
    """Return the absolute path of a file, from `start` or else the working directory.

    The text of the built-in world is not a file, and keeps its name.
    """
    return name if name == _BUILTIN_TEXT else str(absolute(name, start))


def load_general_text(
    source: str | Path | None,
    model: LanguageModel,
    *,
    block_length: int | None = None,
    tokens: dict[TextPart, int] | None = None,
) -> GeneralText:
    """Return general text for `model`: a file, or the built-in world's for a built-in model.

    Raises:
        ConfigError: no source is given for a model from elsewhere, or the file cannot be read.
    """
    if source is None and not is_provided(model.id):
        raise ConfigError(
            f"The model {model.id!r} needs general text to measure its deviation on. Give a file "
            "with --general FILE (one document per line, or JSON lines with a `text`), or "
            "builtin:world to use the built-in world's text."
        )
    if source is None or str(source) == _BUILTIN_TEXT:
        documents: DocumentSource = BuiltinDocuments()
    else:
        documents = FileDocuments(absolute(source))
        documents.check()
    return GeneralText(documents, model, block_length=block_length, tokens=tokens)
