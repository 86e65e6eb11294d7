"""Bundles on disk: whole whatever happens, checked when they are loaded, and nobody else's files
touched."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.bundles import bundle_of, look_up_delta
from tests.support.clone import ROOT
from tests.support.small_disk import python_on_small_disk
from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.deltas.senses import SenseDelta
from tuner.editing.delta import LowRank, Rows, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.editors.grace.memory import GraceDelta
from tuner.editors.look_up.memory import LookUpDelta
from tuner.editors.wise.memory import WiseDelta
from tuner.errors import BaseMismatch, ConfigError

MATRIX = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"  # 32 × 64
EMBEDDINGS = "gpt_neox.embed_in.weight"
MODULE = MATRIX.removesuffix(".weight")


def low_rank(seed: int = 0, rank: int = 2) -> WeightDelta:
    draw = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(32, rank, generator=draw),
        torch.randn(rank, 64, generator=draw),
    )
    return WeightDelta({MATRIX: LowRank(left, right)})


def _same(one: StoredBundle, other: StoredBundle) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def test_a_bundle_replaces_another_and_leaves_the_user_s_files(
    neox: LanguageModel, tmp_path: Path
) -> None:
    folder = bundle_of(neox, low_rank(0)).save(tmp_path / "edit")
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    new = bundle_of(neox, low_rank(1))
    new.save(folder)
    assert _same(StoredBundle.load(folder), new.stored)
    names = {"delta.json", "delta.safetensors", "notes.txt", "plots"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_linked_bundle_is_written_where_the_link_points(
    neox: LanguageModel, tmp_path: Path
) -> None:
    folder = bundle_of(neox, low_rank(0)).save(tmp_path / "disk" / "edit")
    link = tmp_path / "edit"
    link.symlink_to(folder)
    new = bundle_of(neox, low_rank(1))
    new.save(link)
    assert link.is_symlink()
    assert _same(StoredBundle.load(folder), new.stored)


def test_a_kill_at_any_step_leaves_the_old_bundle_or_the_new_one(
    neox: LanguageModel, tmp_path: Path
) -> None:
    old, new = bundle_of(neox, low_rank(0)), bundle_of(neox, low_rank(1), editor="rome")
    # A bundle of old, whose manifest names no tensors, must survive too.
    folder = old.save(tmp_path / "edit")
    plain = json.loads((folder / "delta.json").read_text())
    plain.pop("tensors_hash", None)
    (folder / "delta.json").write_text(json.dumps(plain))
    ends = []
    for step in range(100):
        code = _killed_at(step, lambda: new.save(folder))
        found = StoredBundle.load(folder)
        is_new = found.manifest.editor == "rome"
        assert _same(found, new.stored if is_new else old.stored)
        ends.append(is_new)
        if code == 0:
            break
    assert ends[0] is False
    assert ends[-1] is True
    assert ends == sorted(ends)
    assert sum(ends) >= 2, "killed between the two files"
    assert {path.name for path in folder.iterdir()} == {"delta.json", "delta.safetensors"}


def _killed_at(step: int, write: Callable[[], object]) -> int:
    """Run `write` in a process that dies just before its rename of that number; 0 if it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left, rename = [step], os.replace

    def replace(source: Path, target: Path) -> None:
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    Path.replace = lambda path, target: replace(path, target)  # type: ignore[assignment,method-assign]
    try:
        write()
        os._exit(0)
    finally:
        os._exit(1)


def test_what_is_written_follows_the_umask(neox: LanguageModel, tmp_path: Path) -> None:
    folder = bundle_of(neox, low_rank()).save(tmp_path / "edit")
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {plain.stat().st_mode}


FULL = """
import sys
from pathlib import Path
import torch
from tuner.bundle.bundle import StoredBundle
from tuner.errors import DiskError
source, place = map(Path, sys.argv[1:])
bundle = StoredBundle.load(source)
bundle.save(place / "edit")
large = StoredBundle({"a::values": torch.zeros(300_000)}, bundle.manifest)
for target in (place / "edit", place / "other"):
    try:
        large.save(target)
    except DiskError as error:
        assert "the disk is full" in str(error), error
    else:
        raise SystemExit("no word of the full disk")
assert StoredBundle.load(place / "edit").tensors.keys() == bundle.tensors.keys()
assert {path.name for path in place.iterdir()} == {"edit"}
assert {path.name for path in (place / "edit").iterdir()} == {"delta.json", "delta.safetensors"}
"""


def test_a_full_disk_is_told_in_words_and_leaves_the_old_bundle(
    neox: LanguageModel, tmp_path: Path
) -> None:
    folder = bundle_of(neox, low_rank()).save(tmp_path / "edit")
    found = python_on_small_disk(
        tmp_path / "disk", "256k", ["-c", FULL, str(folder), str(tmp_path / "disk")]
    )
    assert found.returncode == 0, found.stderr


NAN = float("nan")
INTEGERS = torch.zeros(32, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": torch.tensor(1.0)}, "do not fit together"),
        ({"right": torch.zeros(2, 64, 1)}, "do not fit together"),
        ({"left": torch.zeros(32, 0), "right": torch.zeros(0, 64)}, "do not fit together"),
        ({"left": torch.zeros(32, 2, dtype=torch.float16)}, "one precision"),
        ({"left": INTEGERS}, "one precision"),
        ({"left": torch.zeros(32, 2, dtype=torch.bool)}, "no delta holds bool"),
        ({"left": torch.zeros(32, 2, dtype=torch.complex64)}, "no delta holds complex64"),
        ({"left": torch.zeros(32, 2).to(torch.float8_e5m2)}, "no delta holds float8_e5m2"),
        ({"left": torch.full((32, 2), NAN)}, "holds NaN or infinite values"),
        ({"left": torch.full((32, 2), -torch.inf)}, "holds NaN or infinite values"),
        ({"left": torch.zeros(31, 2)}, "does not fit its shape"),
        ({"right": torch.zeros(2, 63)}, "does not fit its shape"),
        ({"middle": torch.zeros(2, 2)}, "form no change that tuner knows"),
    ],
)
def test_damaged_factors_are_told_in_words(
    neox: LanguageModel, tmp_path: Path, change: dict[str, Tensor], words: str
) -> None:
    folder = bundle_of(neox, low_rank()).save(tmp_path / "edit")
    _put(folder, {f"{MATRIX}::{role}": tensor for role, tensor in change.items()})
    with pytest.raises(ConfigError, match=words):
        Bundle.load(folder).check_base(neox)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.tensor([-1, 3]), "must be numbers from 0"),
        (torch.tensor([3, 3]), "must be numbers from 0"),
        (torch.tensor([1, 2, 3]), "must be numbers from 0"),
        (torch.tensor(3), "list of int64"),
        (torch.tensor([1.0, 2.0]), "list of int64"),
        (torch.tensor([[1, 2]]), "list of int64"),
        (torch.tensor([0, 10**12]), "does not fit its shape"),
    ],
)
def test_rows_that_no_embedding_has_are_told_in_words(
    neox: LanguageModel, tmp_path: Path, index: Tensor, words: str
) -> None:
    rows = WeightDelta({EMBEDDINGS: Rows(torch.tensor([1, 2]), torch.ones(2, 32))})
    folder = bundle_of(neox, rows).save(tmp_path / "edit")
    _put(folder, {f"{EMBEDDINGS}::index": index})
    with pytest.raises(ConfigError, match=words):
        Bundle.load(folder).check_base(neox)


@pytest.mark.parametrize("name", ["", "no.such.weight", "gpt_neox.final_layer_norm.weight"])
def test_parameters_that_the_base_lacks_are_told_in_words(
    neox: LanguageModel, tmp_path: Path, name: str
) -> None:
    folder = bundle_of(neox, low_rank()).save(tmp_path / "edit")
    tensors = {f"{name}::{key.partition('::')[2]}": t for key, t in _tensors(folder).items()}
    save_file(tensors, folder / "delta.safetensors")
    _forget_hash(folder)
    with pytest.raises(ConfigError, match=r"without the name|does not have|does not fit"):
        Bundle.load(folder).check_base(neox)


def _grace(module: str = MODULE, inputs: int = 64, outputs: int = 32) -> GraceDelta:
    return GraceDelta(
        strength=1.0,
        module=module,
        keys=torch.ones(2, inputs),
        values=torch.ones(2, outputs),
        radii=torch.ones(2),
        targets=(("a",), ("b",)),
        replacement="last",
    )


def _wise(module: str = MODULE, inputs: int = 64, outputs: int = 32) -> WiseDelta:
    return WiseDelta(1.0, module, torch.zeros(2, inputs, outputs), torch.ones(2))


@pytest.mark.parametrize("make", [_grace, _wise])
def test_a_memory_of_a_layer_needs_such_a_linear_map(
    neox: LanguageModel, make: Callable[..., GraceDelta | WiseDelta]
) -> None:
    bundle_of(neox, make()).check_base(neox)
    for module, words in (
        ("", "the model is GPTNeoXForCausalLM"),
        ("gpt_neox.final_layer_norm", "the model is LayerNorm"),
        ("gpt_neox.embed_in", "the model is Embedding"),
        ("gpt_neox.layers.99.mlp", "which the model does not have"),
    ):
        with pytest.raises(BaseMismatch, match=words):
            bundle_of(neox, make(module)).check_base(neox)
    with pytest.raises(BaseMismatch, match="63 inputs and 32 outputs"):
        bundle_of(neox, make(inputs=63)).check_base(neox)
    with pytest.raises(BaseMismatch, match="64 inputs and 31 outputs"):
        bundle_of(neox, make(outputs=31)).check_base(neox)


def test_a_look_up_cache_needs_its_tokens_and_widths(neox: LanguageModel) -> None:
    bundle_of(neox, look_up_delta()).check_base(neox)
    for delta, words in (
        (look_up_delta(target=10**6), "says token 1000000"),
        (look_up_delta(end=10**6), "says token 1000000"),
        (look_up_delta(width=31), "31 numbers wide"),
    ):
        with pytest.raises(BaseMismatch, match=words):
            bundle_of(neox, delta).check_base(neox)


@pytest.mark.parametrize(
    ("delta", "change", "words"),
    [
        (_grace(), {"keys": torch.tensor(1.0)}, "one key, one value and one radius"),
        (_grace(), {"radii": torch.ones(2, 1)}, "one key, one value and one radius"),
        (_grace(), {"radii": -torch.ones(2)}, "at least 0"),
        (_grace(), {"keys": torch.ones(2, 64, dtype=torch.int64)}, "real numbers"),
        (_wise(), {"changes": torch.tensor(1.0)}, "one matrix and one threshold"),
        (_wise(), {"changes": torch.ones(2, 64)}, "one matrix and one threshold"),
        (_wise(), {"thresholds": torch.ones(2, dtype=torch.int64)}, "real numbers"),
        (look_up_delta(), {"keys": torch.tensor(1.0)}, "one key for each"),
        (look_up_delta(), {"keys": torch.ones(1, 32, dtype=torch.int64)}, "real numbers"),
    ],
)
def test_damaged_memories_are_told_in_words(
    neox: LanguageModel,
    tmp_path: Path,
    delta: GraceDelta | WiseDelta | LookUpDelta,
    change: dict[str, Tensor],
    words: str,
) -> None:
    folder = bundle_of(neox, delta).save(tmp_path / "edit")
    assert isinstance(Bundle.load(folder).delta, type(delta))
    _put(folder, change)
    with pytest.raises(ConfigError, match=words):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"targets": [[-1]]}, "greater than or equal to 0"),
        ({"end": 0.5}, "valid integer"),
        ({"threshold": 0}, "greater than 0"),
        ({"strength": -1}, "greater than or equal to 0"),
        ({"logit": "NaN"}, "finite number"),
        ({"targets": []}, "one key for each"),
    ],
)
def test_a_memory_s_damaged_record_is_told_in_words(
    neox: LanguageModel, tmp_path: Path, record: dict[str, object], words: str
) -> None:
    folder = bundle_of(neox, look_up_delta()).save(tmp_path / "edit")
    manifest = json.loads((folder / "delta.json").read_text())
    manifest["memory"] |= record
    (folder / "delta.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=words):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (torch.tensor([[-1, 0]]), "do not fit a Backpack"),
        (torch.tensor([[10**6, 0]]), "do not fit a Backpack"),
        (torch.tensor([[0, 99]]), "do not fit a Backpack"),
        (torch.tensor([[0.0, 1.0]]), "int64"),
        (torch.tensor(0), "int64"),
    ],
)
def test_senses_that_no_backpack_has_are_told_in_words(
    backpack: LanguageModel, tmp_path: Path, pairs: Tensor, words: str
) -> None:
    delta = SenseDelta(torch.tensor([[1, 2]]), torch.ones(1, 32))
    folder = bundle_of(backpack, delta).save(tmp_path / "edit")
    _put(folder, {"pairs": pairs})
    with pytest.raises(ConfigError, match=words):
        Bundle.load(folder).check_base(backpack)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"kind": "w\xe9ights"}', "is not UTF-8"),
        (b"", "not valid JSON"),
        (b'{"kind": ', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"kind": "\\ud800"}', "surrogate"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "5,000 digits"),
        (b'{"kind": "' + b"x" * 100_000 + b'"}', "kind"),
        (b"[1, 2]", "mapping"),
    ],
)
def test_a_damaged_manifest_is_told_in_a_few_words(
    neox: LanguageModel, tmp_path: Path, content: bytes, words: str
) -> None:
    folder = bundle_of(neox, low_rank()).save(tmp_path / "edit")
    (folder / "delta.json").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as told:
        StoredBundle.load(folder)
    assert re.search(r"is damaged|cannot be used here", str(told.value))
    assert len(str(told.value)) < 5000


@pytest.mark.parametrize("name", ["delta.json", "delta.safetensors"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(
    neox: LanguageModel, tmp_path: Path, name: str
) -> None:
    folder = bundle_of(neox, low_rank()).save(tmp_path / "edit")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ConfigError, match="it is a named pipe"):
        StoredBundle.load(folder)


def test_tensors_of_another_bundle_are_not_taken_for_its_own(
    neox: LanguageModel, tmp_path: Path
) -> None:
    folder = bundle_of(neox, low_rank(0)).save(tmp_path / "edit")
    other = bundle_of(neox, low_rank(1)).save(tmp_path / "other")
    (other / "delta.safetensors").rename(folder / "delta.safetensors")
    with pytest.raises(ConfigError, match="does not hold the tensors"):
        StoredBundle.load(folder)


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor.clone() for name, tensor in load_file(folder / "delta.safetensors").items()
    }


def _put(folder: Path, changes: dict[str, Tensor]) -> None:
    """Write tensors into a bundle as a stranger would whose manifest names no hash."""
    save_file(_tensors(folder) | changes, folder / "delta.safetensors")
    _forget_hash(folder)


def _forget_hash(folder: Path) -> None:
    manifest = json.loads((folder / "delta.json").read_text())
    manifest.pop("tensors_hash", None)
    (folder / "delta.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["lora", "memory"])
def test_a_bundle_of_the_first_version_is_read_and_written_byte_for_byte(
    name: str, tmp_path: Path
) -> None:
    old = ROOT / "tests/data/written_by_the_first_version" / name
    new = StoredBundle.load(old).save(tmp_path / name)
    assert (new / "delta.safetensors").read_bytes() == (old / "delta.safetensors").read_bytes()
    # Then there was no hash of the tensors.
    lines = [
        line for line in (new / "delta.json").read_text().splitlines() if "tensors_hash" not in line
    ]
    assert lines == (old / "delta.json").read_text().splitlines()
