"""Mean gradients on disk: taken once per model and text, one file per layer, shared by all trials.

<cache>/mean_gradient/<model and text>/<tokens>-<weights>/
gradient.json              what it was taken of; written last
layer-003.safetensors      float32 sums of the layer's gradients
rest.safetensors           those of weights outside the layers
partial/                   the same of a gradient that is still being taken
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tuner.editing.corpus import GeneralText, TextPart
from tuner.editing.delta import Delta, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.errors import DiskError, TaskError
from tuner.evaluation.deviation.mean_gradient import MeanGradient, add_gradients
from tuner.files.atomic_file import write_tensors, write_text
from tuner.files.cache import Cache
from tuner.files.file_lock import file_lock_if_any

_RECORD = "gradient.json"
_PARTIAL = "partial"
# Between two times that what is done so far is kept.
_SAVE_EVERY_S = 120.0
_TOKENS_PER_BATCH = 1024

Listener = Callable[[int, int], None]
"""(tokens read, tokens in all) is called after each batch."""


@final
class GradientRecord(BaseModel):
    """What a gradient on disk was taken of, and how far it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: int = Field(ge=0, description="Blocks that were read.")
    block_length: int
    loss: float = Field(description="Summed loss of these blocks, in nats.")
    names: tuple[str, ...] = Field(description="The parameters that it knows.")


@final
@dataclass(frozen=True)
class GradientStore:
    """The mean gradients of one model on one general text."""

    model: LanguageModel
    text: GeneralText
    cache: Cache

    def of(self, delta: Delta) -> MeanGradient | None:
        """Return the gradient that knows a change, taken now if need be; None where none can be.

        There cannot be one of what is not a change of weights, for too little text, or where it
        does not fit into memory.
        """
        if not isinstance(delta, WeightDelta) or not self.has_text:
            return None
        known = self.find(delta.changed)
        if known is not None:
            return known
        names = {*self.model.architecture.linear_weights(self.model.network), *delta.changed}
        try:
            return self.prepare(names)
        except (torch.OutOfMemoryError, MemoryError):
            return None

    @property
    def has_text(self) -> bool:
        """Whether there is any text for a gradient."""
        try:
            return bool(self._digest)
        except TaskError:
            return False

    def find(self, names: Collection[str]) -> MeanGradient | None:
        """Return the gradient from the most text that knows all of these parameters, if any."""
        known = [
            (record.blocks, folder, record)
            for folder, record in self._finished()
            if set(names) <= set(record.names)
        ]
        if not known:
            return None
        _, folder, record = max(known, key=lambda entry: entry[0])
        return MeanGradient(_Shards(folder, record.loss, self.model.device), record.blocks)

    def prepare(self, names: Collection[str], listener: Listener | None = None) -> MeanGradient:
        """Return the gradient of these parameters on all of the text's gradient part.

        One process takes it and others wait; one that was stopped goes on where it was.

        Raises:
            TaskError: there is too little text for a gradient.
            DiskError: the cache cannot be written.
        """
        blocks = self.text.corpus(TextPart.GRADIENT).blocks
        folder = self._folder(len(blocks) * blocks.shape[1], names)
        with file_lock_if_any(folder.with_suffix(".lock")):
            known = self._record(folder)
            if known is None:
                _Run(self.model, folder, sorted(names), blocks, listener).take()
                known = self._record(folder)
        if known is None:
            raise DiskError(f"The gradient cannot be kept in {folder}.")
        return MeanGradient(_Shards(folder, known.loss, self.model.device), known.blocks)

    def _finished(self) -> Iterator[tuple[Path, GradientRecord]]:
        if not self._root.is_dir():
            return
        for folder in sorted(self._root.iterdir()):
            record = self._record(folder)
            if record is not None and record.block_length == self.text.block_length:
                yield folder, record

    def _record(self, folder: Path) -> GradientRecord | None:
        return _read(folder / _RECORD)

    def _folder(self, tokens: int, names: Collection[str]) -> Path:
        of_names = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]
        return self._root / f"{tokens}-{of_names}"

    @cached_property
    def _root(self) -> Path:
        return self.cache.folder / "mean_gradient" / self._digest

    @cached_property
    def _digest(self) -> str:
        key = {
            "model": self.model.fingerprint,
            "text": self.text.source_hash,
            "dtype": str(self.model.dtype),
            "attention": self.model.kernel,
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@final
@dataclass(frozen=True)
class _Shards(Mapping[str, Tensor]):
    """Gradients by parameter, read from their layer's file when they are asked for."""

    folder: Path
    loss: float
    device: torch.device

    @cached_property
    def _files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as shard:
                files |= dict.fromkeys(shard.keys(), path)
        return files

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as shard:
            total: Tensor = shard.get_tensor(name)
        return total.to(self.device) / self.loss

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _Run:
    """Takes one gradient, keeping what is done every two minutes."""

    def __init__(
        self,
        model: LanguageModel,
        folder: Path,
        names: list[str],
        blocks: Tensor,
        listener: Listener | None,
    ) -> None:
        self._network: PreTrainedModel = model.network
        self._folder = folder
        self._names = names
        self._blocks = blocks
        self._listener = listener
        self._batch = max(1, _TOKENS_PER_BATCH // blocks.shape[1])
        self._sums: dict[str, Tensor] = {}
        self._read, self._loss = 0, 0.0

    @torch.enable_grad()  # the caller may measure from within no_grad
    def take(self) -> None:
        """Read the blocks that are left, and write the gradient."""
        self._resume()
        weights = {name: self._network.get_parameter(name) for name in self._names}
        for weight in weights.values():
            weight.requires_grad_(True)
        hooks = [
            weight.register_post_accumulate_grad_hook(self._adder(name))
            for name, weight in weights.items()
        ]
        saved = time.monotonic()
        try:
            while self._read < len(self._blocks):
                part = self._blocks[self._read : self._read + self._batch]
                self._loss += add_gradients(self._network, [part.to(self._network.device)])
                self._read += len(part)
                if self._listener is not None:
                    length = self._blocks.shape[1]
                    self._listener(self._read * length, len(self._blocks) * length)
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self._write(self._folder / _PARTIAL)
                    saved = time.monotonic()
        finally:
            for hook in hooks:
                hook.remove()
            self._network.zero_grad(set_to_none=True)
            self._network.requires_grad_(False)
        self._write(self._folder)
        shutil.rmtree(self._folder / _PARTIAL, ignore_errors=True)

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            # In half precision a sum of many gradients would lose the small ones.
            if weight.grad is not None:
                self._sums[name] += weight.grad.to(torch.float32)
                weight.grad = None

        return add

    def _resume(self) -> None:
        record = _read(self._folder / _PARTIAL / _RECORD)
        kept = {} if record is None else _load(self._folder / _PARTIAL)
        if record is not None and kept.keys() == set(self._names):
            self._read, self._loss = record.blocks, record.loss
            self._sums = {name: total.to(self._network.device) for name, total in kept.items()}
            return
        self._sums = {
            name: torch.zeros_like(self._network.get_parameter(name), dtype=torch.float32)
            for name in self._names
        }

    def _write(self, folder: Path) -> None:
        # Without its record a folder is nothing: it goes first, and comes last.
        (folder / _RECORD).unlink(missing_ok=True)
        shards: dict[str, dict[str, Tensor]] = {}
        for name, total in self._sums.items():
            shards.setdefault(_shard_of(name), {})[name] = total.cpu().contiguous()
        for shard, tensors in shards.items():
            write_tensors(folder / f"{shard}.safetensors", tensors)
        record = GradientRecord(
            blocks=self._read,
            block_length=self._blocks.shape[1],
            loss=self._loss,
            names=tuple(self._names),
        )
        write_text(folder / _RECORD, record.model_dump_json())


def _read(path: Path) -> GradientRecord | None:
    """Return a record; None where there is none, or not a whole one of this version."""
    try:
        return GradientRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _load(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder; none where one of its files is damaged."""
    tensors: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
    except (OSError, SafetensorError):
        return {}
    return tensors


def _shard_of(name: str) -> str:
    number = re.search(r"\.(\d+)\.", name)
    return "rest" if number is None else f"layer-{int(number[1]):03d}"
