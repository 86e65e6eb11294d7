"""A bundle in the shape that other tools load: PEFT adapter, merged model, or the bundle itself."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

import torch
from safetensors import SafetensorError
from torch import Tensor

from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.bundle.export_card import card_of_adapter, card_of_merged
from tuner.bundle.manifest import Manifest
from tuner.editing.architectures import Architecture, architecture_of
from tuner.editing.delta import Dense, LowRank, Rows, WeightDelta
from tuner.editing.model import LanguageModel, load_model
from tuner.errors import ConfigError, unknown_name
from tuner.files.atomic_file import (
    as_os_error,
    whole_folder,
    write_tensors,
    write_text,
)
from tuner.files.text_file import is_taken

Format = Literal["delta", "peft", "merged"]
AnyBundle: TypeAlias = Bundle | StoredBundle
CARD = "README.md"
FORMATS: tuple[Format, ...] = ("delta", "peft", "merged")


@final
@dataclass(frozen=True)
class Export:
    """What was written, and how far its logits are from the edited model's."""

    folder: Path
    format: Format
    note: str


def suited_format(bundle: AnyBundle, rank: int | None = None) -> Format:
    """Return the lightest exact form of a bundle, or `peft` where a dense one is to be cut.

    It is `peft` for low-rank changes of weights, `merged` for others and for senses, and `delta`
    for what runs beside the model.
    """
    if bundle.manifest.runs_beside:
        return "delta"
    delta = _opened(bundle).delta
    if isinstance(delta, WeightDelta):
        low_rank = all(isinstance(change, LowRank) for change in delta.changes.values())
        return "peft" if low_rank or rank is not None else "merged"
    return "merged"


def export(
    bundle: AnyBundle,
    folder: str | Path,
    *,
    format: Format | None = None,
    model: LanguageModel | None = None,
    rank: int | None = None,
) -> Export:
    """Write a bundle for other tools and return what was written.

    Without a `format` it is that of `suited_format`. `peft` is exact for low-rank deltas; dense
    ones are cut to `rank` by a singular value decomposition, and the share of the change that is
    lost is stated. `merged` is a folder for `AutoModelForCausalLM`; it needs the base, which is
    loaded unless `model` is given. `delta` of a `StoredBundle` needs no model at all.

    Raises:
        ConfigError: the format is unknown, the folder is in use, or the delta cannot take it.
        BaseMismatch: the base model is not the one that the delta was made from.
        DiskError: the folder cannot be written.
    """
    # What a link points to is filled, not the link.
    target = Path(os.path.realpath(folder))
    if target == Path.cwd().resolve():
        raise ConfigError("An export needs a folder of its own, not the one you are in.")
    if is_taken(target):
        raise ConfigError(f"{target} exists and is not empty; choose another folder.")
    format = format or suited_format(bundle, rank)
    stored = bundle.stored if isinstance(bundle, Bundle) else bundle
    match format:
        case "delta":
            stored.save(target)
            note = "the bundle itself, exact"
        case "peft":
            weights = _weights_of(bundle)
            note = _into(target, lambda part: _write_peft(weights, stored, part, rank))
        case "merged":
            _check_can_be_written(bundle.manifest)
            base = model or _load_base(bundle.manifest)
            opened = _opened(bundle)
            opened.check_base(base)
            note = _into(target, lambda part: _write_merged(opened, base, part))
        case _:
            raise unknown_name("export format", str(format), FORMATS)
    return Export(target, format, note)


def _into(target: Path, write: Callable[[Path], str]) -> str:
    """Fill a folder beside `target` and move it into place when it is whole.

    Raises:
        DiskError: it cannot be written.
    """
    with whole_folder(target) as draft:
        note = write(draft)
        _share(draft)
    return note


def _share(folder: Path) -> None:
    """Let all who may read one of our files read those of the libraries too."""
    probe = folder / "probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _opened(bundle: AnyBundle) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else bundle.open()


def _load_base(manifest: Manifest) -> LanguageModel:
    return load_model(manifest.base, revision=manifest.base_revision, dtype=manifest.base_dtype)


def _check_can_be_written(manifest: Manifest) -> None:
    if manifest.runs_beside:
        raise ConfigError(
            f"A change of kind {manifest.kind!r} runs beside the model and cannot be "
            "written into its weights; export it as `delta`."
        )


def _weights_of(bundle: AnyBundle) -> WeightDelta:
    manifest = bundle.manifest
    delta = None if manifest.runs_beside else _opened(bundle).delta
    if not isinstance(delta, WeightDelta):
        others = "`delta`" if manifest.runs_beside else "`merged` or `delta`"
        raise ConfigError(
            f"A change of kind {manifest.kind!r} has no PEFT form; export it as {others}."
        )
    return delta


def _write_merged(bundle: Bundle, model: LanguageModel, folder: Path) -> str:
    with model.edited(bundle.delta):
        try:
            model.network.save_pretrained(folder, safe_serialization=True)
        except SafetensorError as error:
            raise as_os_error(error) from None
    model.tokenizer.save_pretrained(folder)
    write_text(folder / CARD, card_of_merged(bundle.stored, folder.name))
    return f"weights in {bundle.manifest.base_dtype}, the edited model's own bits"


def _write_peft(weights: WeightDelta, bundle: StoredBundle, folder: Path, rank: int | None) -> str:
    manifest = bundle.manifest
    architecture = architecture_of(manifest.model_type)
    factors = {
        name.removesuffix(".weight"): _peft_factors(name, change, architecture, rank)
        for name, change in weights.changes.items()
    }
    if rank is None and any(factor.lost > 0 for factor in factors.values()):
        raise ConfigError(
            "This delta is dense, and a PEFT adapter is low-rank: give --rank to cut it by a "
            "singular value decomposition (the loss is stated), or export it as `merged`."
        )
    ranks = {name: factor.down.shape[0] for name, factor in factors.items()}
    largest = max(ranks.values())
    tensors: dict[str, Tensor] = {}
    for name, factor in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = factor.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = factor.up
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": manifest.base,
        "revision": manifest.base_revision,
        "inference_mode": True,
        "r": largest,
        # The scale is inside the factors: alpha/rank is one for every matrix.
        "lora_alpha": largest,
        "rank_pattern": {name: r for name, r in ranks.items() if r != largest},
        "alpha_pattern": {name: r for name, r in ranks.items() if r != largest},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": architecture.transposed,
        "target_modules": sorted(factors),
    }
    write_text(folder / "adapter_config.json", f"{json.dumps(config, indent=2)}\n")
    write_text(folder / CARD, card_of_adapter(bundle, folder.name, largest))
    lost = max(factor.lost for factor in factors.values())
    return "exact" if lost == 0 else f"cut to rank {largest}; up to {lost:.1%} of a change is lost"


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
