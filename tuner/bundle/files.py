"""The two files of a bundle: written whole over what was there, and checked as they are read."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tuner.bundle.manifest import Manifest
from tuner.errors import ConfigError, DiskError, UnknownKind
from tuner.evaluation.identity import tensors_hash
from tuner.files.atomic_file import (
    cannot_write,
    remove_abandoned_drafts,
    whole_folder,
    write_tensors,
    write_text,
)
from tuner.files.json_file import validate_json
from tuner.files.text_file import is_file, is_taken, open_file, read_text_if_any, reason
from tuner.validation import show_path

TENSORS_FILE = "delta.safetensors"
MANIFEST_FILE = "delta.json"
_WAITING = "delta-" + "[0-9a-f]" * 16 + ".safetensors"
_STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)


def write_bundle(
    folder: str | Path, manifest: Manifest, tensors: Mapping[str, Tensor], digest: str
) -> Path:
    """Write the files of a bundle, given the hash of its tensors, and return its folder.

    Whatever happens meanwhile, the folder holds the whole new bundle, or what was there before.
    Other files in it stay.

    Raises:
        ConfigError: the folder exists and is not a bundle.
        DiskError: it cannot be written.
    """
    check_place(folder)
    # What a link points to is written, not the link.
    shown, target = Path(folder).absolute(), Path(os.path.realpath(folder))
    if not is_file(target / MANIFEST_FILE):
        with whole_folder(target) as draft:
            write_files(draft, manifest, tensors, digest)
        return shown
    remove_abandoned_drafts(target)
    _replace(target, manifest, tensors, digest)
    return shown


def write_files(
    folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor], digest: str
) -> None:
    """Write the files of a bundle into a folder that holds none.

    Raises:
        DiskError: they cannot be written.
    """
    write_tensors(folder / TENSORS_FILE, tensors)
    write_text(folder / MANIFEST_FILE, _text_of(manifest, digest))


def read_bundle(folder: str | Path) -> tuple[Manifest, dict[str, Tensor], str]:
    """Return what the files of a bundle hold, and the hash of the tensors.

    Raises:
        ConfigError: the folder is not a bundle, or is damaged, or holds a kind of delta that is
            not at hand here.
    """
    source = Path(folder)
    try:
        text = read_text_if_any(source / MANIFEST_FILE)
    except ConfigError as error:
        raise _damaged(source, error) from None
    if text is None:
        raise _missing(source, MANIFEST_FILE)
    manifest = _manifest_in(text, source)
    waiting = None if manifest.tensors_hash is None else _waiting(manifest.tensors_hash)
    is_there = False
    # A process that writes the bundle now may just move the tensors from there to here.
    for name in (TENSORS_FILE, waiting, TENSORS_FILE):
        if name is None or not os.path.lexists(source / name):
            continue
        is_there = True
        try:
            tensors = _read_tensors(source / name)
        except ConfigError as error:
            raise _damaged(source, error) from None
        digest = tensors_hash(tensors)
        if manifest.tensors_hash in (None, digest):
            # That of the manifest is the files' business: it is written anew whenever they are.
            return manifest.model_copy(update={"tensors_hash": None}), tensors, digest
    if not is_there:
        raise _missing(source, TENSORS_FILE)
    raise _damaged(
        source,
        f"{TENSORS_FILE} does not hold the tensors that {MANIFEST_FILE} belongs to, by their "
        "hash. One of them was changed or replaced: take both from the same place.",
    )


def check_place(folder: str | Path) -> None:
    """Verify that a bundle may be written to `folder`: nothing is there, or a bundle.

    Raises:
        ConfigError: it is something else.
    """
    target = Path(os.path.realpath(folder))
    try:
        used = is_taken(target)
    except OSError as error:
        raise ConfigError(f"{show_path(folder)} cannot be written: {reason(error)}.") from None
    if used and not is_file(target / MANIFEST_FILE):
        raise ConfigError(f"{show_path(folder)} exists and is not a bundle; choose another folder.")


def _replace(target: Path, manifest: Manifest, tensors: Mapping[str, Tensor], digest: str) -> None:
    """Write a bundle over another one.

    The manifest names the tensors that belong to it, so it decides which bundle this is: new
    tensors wait beside the old ones until it is there, and `read_bundle` finds them in either
    place.
    """
    path, waiting = target / TENSORS_FILE, target / _waiting(digest)
    try:
        there = tensors_hash(_read_tensors(path)) == digest
    except ConfigError:
        there = False
    try:
        if not there:
            write_tensors(waiting, tensors)
        write_text(target / MANIFEST_FILE, _text_of(manifest, digest))
    except DiskError:
        waiting.unlink(missing_ok=True)
        raise
    try:
        if not there:
            waiting.replace(path)
        for left in target.glob(_WAITING):
            left.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None


def _text_of(manifest: Manifest, digest: str) -> str:
    named = manifest.model_copy(update={"tensors_hash": digest})
    return f"{named.model_dump_json(indent=2)}\n"


def _manifest_in(text: str, folder: Path) -> Manifest:
    # Its complaints are one line each and show at most the beginning of a value.
    damaged = f"The bundle {show_path(folder)} is damaged: {MANIFEST_FILE}"
    try:
        return validate_json(text, Manifest, damaged)
    except UnknownKind as error:
        raise UnknownKind(
            f"The bundle {show_path(folder)} cannot be used here: {MANIFEST_FILE}: {error}"
        ) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file, all of them finite.

    Raises:
        ConfigError: it cannot be read, or holds what no delta holds.
    """
    try:
        with open_file(path):
            tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error}.") from None
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        # What the header says of a tensor is not something that torch knows.
        raise ConfigError(f"{path.name}: cannot be read: {type(error).__name__}.") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _STORED:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(f"{path.name}: no delta holds {kind}, but {show_path(name)} does.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{path.name}: {show_path(name)} holds NaN or infinite values.")
    return tensors


def _waiting(tensors_hash: str) -> str:
    """Return the name of tensors whose manifest is not there yet."""
    return f"delta-{tensors_hash[:16]}.safetensors"


def _damaged(folder: Path, why: object) -> ConfigError:
    return ConfigError(f"The bundle {show_path(folder)} is damaged: {why}")


def _missing(folder: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{show_path(folder)} is not a bundle: {name} is missing. A bundle holds {MANIFEST_FILE} "
        f"and {TENSORS_FILE}."
    )
