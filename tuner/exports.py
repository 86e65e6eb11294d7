"""A bundle in the shape that other tools load: PEFT adapter, merged model, or the bundle itself."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

import torch
from safetensors.torch import save_file
from torch import Tensor

from tuner.backpack import BackpackConfig
from tuner.bundle import Bundle, Manifest, StoredBundle
from tuner.editing.architectures import Architecture, architecture_of
from tuner.editing.delta import Dense, LowRank, Rows, WeightDelta
from tuner.editing.model import LanguageModel, load_model
from tuner.errors import ConfigError, unknown_name
from tuner.evaluation.budget import epsilon_name
from tuner.evaluation.scores import Scores

Format = Literal["delta", "peft", "merged"]
AnyBundle: TypeAlias = Bundle | StoredBundle
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
    """
    target = Path(folder).absolute()
    if target == Path.cwd():
        raise ConfigError("An export needs a folder of its own, not the one you are in.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not empty; choose another folder.")
    format = format or suited_format(bundle, rank)
    match format:
        case "delta":
            stored = bundle.stored if isinstance(bundle, Bundle) else bundle
            note = _into(target, lambda part: _write_delta(stored, part))
        case "peft":
            weights = _weights_of(bundle)
            note = _into(target, lambda part: _write_peft(weights, bundle.manifest, part, rank))
        case "merged":
            _check_can_be_written(bundle.manifest)
            base = model or _load_base(bundle.manifest)
            bundle.manifest.check_base(base)
            opened = _opened(bundle)
            note = _into(target, lambda part: _write_merged(opened, base, part))
        case _:
            raise unknown_name("export format", str(format), FORMATS)
    return Export(target, format, note)


def _into(target: Path, write: Callable[[Path], str]) -> str:
    """Fill a folder beside `target` and move it into place when it is whole."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        note = write(part)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise ConfigError(f"Cannot write to {target}: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return note


def _opened(bundle: AnyBundle) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else bundle.open()


def _load_base(manifest: Manifest) -> LanguageModel:
    return load_model(manifest.base, revision=manifest.base_revision, dtype=manifest.base_dtype)


def _write_delta(bundle: StoredBundle, folder: Path) -> str:
    # The folder was made for us; a bundle insists on making its own.
    folder.rmdir()
    bundle.save(folder)
    return "the bundle itself, exact"


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
        model.network.save_pretrained(folder, safe_serialization=True)
    model.tokenizer.save_pretrained(folder)
    _write_card(bundle.manifest, folder, "a merged model", _MERGED_USE)
    return f"weights in {bundle.manifest.base_dtype}, the edited model's own bits"


def _write_peft(weights: WeightDelta, manifest: Manifest, folder: Path, rank: int | None) -> str:
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
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
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
    (folder / "adapter_config.json").write_text(f"{json.dumps(config, indent=2)}\n")
    _write_card(manifest, folder, "a LoRA adapter", _PEFT_USE)
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
    match change:
        case LowRank(left, right):
            lost = 0.0
        case Dense(values) if values.ndim == 2:
            left, right, lost = _truncated(values, rank or 1)
        case _:
            raise ConfigError(
                f"The change of {name!r} has no LoRA form (it is no matrix of a linear map); "
                "export the delta as `merged`."
            )
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


_PEFT_USE = """\
```python
from peft import PeftModel
{loading}
model = PeftModel.from_pretrained(model, "{folder}")
```
vLLM serves the folder as a LoRA module:
`vllm serve {base} --enable-lora --lora-modules edit={folder}`.
"""
_MERGED_USE = """\
```python
{loading}
```
"""


def _write_card(manifest: Manifest, folder: Path, what: str, use: str) -> None:
    answer = manifest.answer
    exact = answer.scores.exact
    certificate = manifest.certificate
    settings = "\n".join(f"| {key} | {value} |" for key, value in manifest.hyperparameters.items())
    # The folder still bears the name under which it is filled.
    named = folder.name.removeprefix(".").removesuffix(f".{os.getpid()}.part")
    statement = (
        "No certificate was made."
        if certificate is None
        else f"Certificate for ε = {epsilon_name(certificate.epsilon)}: "
        f"**{certificate.verdict.value}**, "
        f"deviation {certificate.deviation.estimate:.2e} in "
        f"[{certificate.deviation.lower:.2e}, {certificate.deviation.upper:.2e}] at confidence "
        f"{certificate.deviation.confidence:.1%}, from {certificate.deviation.tokens:,} tokens of "
        f"{certificate.corpus}."
    )
    source = named if use is _MERGED_USE else manifest.base
    # Built-in models have no place on a hub, and transformers alone knows no Backpack: tuner
    # itself loads them.
    ours = source.startswith("builtin:") or manifest.model_type == BackpackConfig.model_type
    loading = (
        f'import tuner\n\nmodel = tuner.load_model("{source}").network'
        if ours
        else "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{source}")'
    )
    (folder / "README.md").write_text(
        f"""\
# An edit of {manifest.base}, as {what}

Made by tuner {manifest.versions.get("tuner", "")} with the editor `{manifest.editor}` for the task
`{manifest.task}` ({manifest.split.value} split, seed {manifest.seed}).

- Success on out-of-distribution rows: {answer.success:.3f}, a gain of {answer.gain:+.3f} over the
  base; without teacher forcing {"–" if exact is None else f"{exact:.3f}"}.
{_fact_line(answer.scores)}\
- {statement}

{use.format(base=manifest.base, folder=named, loading=loading)}
| hyperparameter | value |
|---|---|
{settings}
""",
        encoding="utf-8",
    )


def _fact_line(scores: Scores) -> str:
    """Return a line with the published figures of a fact edit; nothing for other tasks."""
    told = [
        f"{name.replace('_', ' ')} {share:.3f}" for name, share in scores.fact_figures().items()
    ]
    return f"- Of the facts, the true tokens given: {', '.join(told)}.\n" if told else ""
