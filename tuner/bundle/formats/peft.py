"""An adapter of PEFT: low-rank factors beside the base's weights."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from tuner.bundle.bundle import StoredBundle
from tuner.bundle.export_card import edit_card, loading_code, python_string
from tuner.bundle.export_format import ExportFormat, ExportSource, Written
from tuner.editing.architectures import Architecture, architecture_of
from tuner.editing.delta import Delta, Dense, LowRank, Rows, WeightDelta
from tuner.errors import ConfigError
from tuner.files.atomic_file import write_tensors, write_text
from tuner.validation import printable

# vLLM takes no other values for --max-lora-rank, and 16 where none is given.
# Source: `MaxLoRARanks` of vllm/config/lora.py (commit 01230b40).
_SERVED_RANKS = (16, 32, 64, 128, 256, 320, 512)


@final
class PeftFormat(ExportFormat):
    """A LoRA adapter, for PEFT and vLLM: exact for low-rank edits, others are cut to --rank."""

    precedence: ClassVar[int | None] = 10

    def refusal(self, source: ExportSource) -> str | None:
        """Return why the change is not an adapter, if it is not."""
        # What a memory brings along may be out of reach: it is refused before it is opened.
        if not source.manifest.runs_beside and isinstance(source.delta, WeightDelta):
            return None
        others = "`delta`" if source.manifest.runs_beside else "`merged` or `delta`"
        return f"A change of kind {source.manifest.kind!r} has no PEFT form; export it as {others}."

    def suits(self, source: ExportSource) -> bool:
        """Return whether the change is low-rank, or may be cut to a rank."""
        if self.refusal(source) is not None or not isinstance(source.delta, WeightDelta):
            return False
        changes = source.delta.changes.values()
        return source.rank is not None or all(isinstance(change, LowRank) for change in changes)

    def served(self, source: ExportSource) -> Delta:
        """Return the change that the adapter makes; a dense one is cut to the rank.

        Raises:
            ConfigError: a change has no low-rank form, or is dense and no rank is given.
        """
        weights = source.delta
        if not isinstance(weights, WeightDelta):
            raise ConfigError(str(self.refusal(source)))
        adapter = adapter_of(weights, architecture_of(source.manifest.model_type), source.rank)
        return weights if adapter.lost == 0 else adapter.delta

    def write(self, source: ExportSource, folder: Path) -> Written:
        """Write the adapter.

        Raises:
            ConfigError: a change has no low-rank form, or is dense and no rank is given.
            DiskError: the folder cannot be written.
        """
        manifest, weights, rank = source.manifest, source.delta, source.rank
        if not isinstance(weights, WeightDelta):
            raise ConfigError(str(self.refusal(source)))
        adapter = adapter_of(weights, architecture_of(manifest.model_type), rank)
        adapter.save(folder, manifest.base, manifest.base_revision)
        lost, largest = adapter.lost, adapter.rank
        cut = f"cut to rank {largest}; up to {lost:.1%} of a change is lost"
        card = adapter_card(source.stored, folder.name, largest)
        return Written("exact" if lost == 0 else cut, card)


@final
@dataclass(frozen=True)
class Adapter:
    """The factors of a LoRA adapter, by the path of the linear map that each runs beside."""

    factors: Mapping[str, "_Factors"]
    transposed: bool
    """Whether the base stores linear weights (in, out)."""

    @property
    def rank(self) -> int:
        """The largest rank of a factor."""
        return max(factor.down.shape[0] for factor in self.factors.values())

    @property
    def lost(self) -> float:
        """The largest share of a change's norm that its rank leaves out."""
        return max(factor.lost for factor in self.factors.values())

    @property
    def delta(self) -> WeightDelta:
        """The change that the adapter makes."""
        return WeightDelta(
            {
                f"{name}.weight": LowRank(factor.down.T, factor.up.T)
                if self.transposed
                else LowRank(factor.up, factor.down)
                for name, factor in self.factors.items()
            }
        )

    def save(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write the adapter as PEFT loads it.

        Raises:
            DiskError: the folder cannot be written.
        """
        ranks = {name: factor.down.shape[0] for name, factor in self.factors.items()}
        tensors: dict[str, Tensor] = {}
        for name, factor in self.factors.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = factor.down
            tensors[f"base_model.model.{name}.lora_B.weight"] = factor.up
        write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": True,
            "r": self.rank,
            # The scale is inside the factors: alpha/rank is one for every matrix.
            "lora_alpha": self.rank,
            "rank_pattern": {name: r for name, r in ranks.items() if r != self.rank},
            "alpha_pattern": {name: r for name, r in ranks.items() if r != self.rank},
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.transposed,
            "target_modules": sorted(self.factors),
        }
        write_text(folder / "adapter_config.json", f"{json.dumps(config, indent=2)}\n")


def adapter_of(delta: WeightDelta, architecture: Architecture, rank: int | None = None) -> Adapter:
    """Return the adapter that makes a change; a dense one is cut to `rank`.

    Raises:
        ConfigError: a change has no low-rank form, or is dense and no rank is given.
    """
    factors = {
        name.removesuffix(".weight"): _peft_factors(name, change, architecture, rank)
        for name, change in delta.changes.items()
    }
    adapter = Adapter(factors, architecture.transposed)
    if rank is None and adapter.lost > 0:
        raise ConfigError(
            "This delta is dense, and a PEFT adapter is low-rank: give --rank to cut it by a "
            "singular value decomposition (the loss is stated), or export it as `merged`."
        )
    return adapter


@final
@dataclass(frozen=True)
class _Factors:
    down: Tensor  # rank × inputs
    up: Tensor  # outputs × rank
    lost: float  # share of the change's norm that the rank leaves out


def _peft_factors(
    name: str, change: Dense | LowRank | Rows, architecture: Architecture, rank: int | None
) -> _Factors:
    # Within the layers every matrix is a linear map; beyond them it may be an embedding.
    if not name.startswith(f"{architecture.layers}.") or not name.endswith(".weight"):
        raise _no_lora_form(name)
    match change:
        case LowRank(left, right):
            lost = 0.0
        case Dense(values) if values.ndim == 2:
            left, right, lost = _truncated(values, rank or 1)
        case _:
            raise _no_lora_form(name)
    # In Conv1D's (in, out) layout the change is (BA)ᵀ = AᵀBᵀ.
    down, up = (left.T, right.T) if architecture.transposed else (right, left)
    return _Factors(down.contiguous().float(), up.contiguous().float(), lost)


def _truncated(values: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    u, s, v = torch.linalg.svd(values.double(), full_matrices=False)
    kept = min(rank, len(s))
    norm = float(s.norm())
    lost = float(s[kept:].norm()) / norm if norm > 0 else 0.0
    root = s[:kept].sqrt()
    return (u[:, :kept] * root).float(), (root[:, None] * v[:kept]).float(), lost


def _no_lora_form(name: str) -> ConfigError:
    return ConfigError(
        f"The change of {name!r} has no LoRA form (it is not a matrix of a linear map); "
        "export the delta as `merged`."
    )


def adapter_card(bundle: StoredBundle, folder: str, rank: int) -> str:
    """Return the card of a LoRA adapter of a rank, in a folder of that name."""
    base = bundle.manifest.base
    usage = f"""\
```python
from peft import PeftModel
{loading_code(bundle.manifest, base)}
model = PeftModel.from_pretrained(model, {python_string(folder)})
```
{_serving(base, folder, rank)}"""
    return edit_card(bundle, "a LoRA adapter", usage)


def _serving(base: str, folder: str, rank: int) -> str:
    served = next((one for one in _SERVED_RANKS if rank <= one), None)
    if served is None:
        return (
            f"vLLM serves adapters up to rank {_SERVED_RANKS[-1]}, and this one has rank {rank}: "
            "for vLLM export the edit as `merged`.\n"
        )
    most = "" if served == _SERVED_RANKS[0] else f" --max-lora-rank {served}"
    place, module = _shell_word(base), _shell_word(f"edit={folder}")
    return f"""\
vLLM serves the folder as a LoRA module:
```sh
vllm serve {place} --enable-lora{most} --lora-modules {module}
```
"""


def _shell_word(text: str) -> str:
    return shlex.quote(printable(text))
