"""What is used of transformers beyond its public API: each use in one place, and as expected."""

import re

import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from transformers.cache_utils import Cache, DynamicLayer

from tests.support.clone import ROOT
from tuner.testing.tiny_models import make_tiny_model

USES = {
    "_attn_implementation": {"tuner/editing/model.py"},
    "layer_class_to_replicate": {
        "tuner/backpack/model.py",
        "tuner/deltas/ensemble/small_caches.py",
    },
    "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD": {"tuner/editing/architectures.py"},
}


def test_each_private_name_is_used_where_it_is_known() -> None:
    files = {path: path.read_text() for path in (ROOT / "tuner").rglob("*.py")}
    for name, places in USES.items():
        users = {str(path.relative_to(ROOT)) for path, text in files.items() if name in text}
        assert users == places, name


def test_no_other_private_module_or_name_of_transformers_is_imported() -> None:
    private = re.compile(
        r"^\s*from transformers[\w.]*\._\w* import|^\s*from transformers[\w.]* import (.*\W)?_\w"
    )
    for path in (ROOT / "tuner").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not private.match(line), f"{path}: {line}"


def test_the_attention_kernel_is_what_transformers_was_asked_for() -> None:
    model = make_tiny_model("llama")
    assert model.kernel == "sdpa"
    model.network.set_attn_implementation("eager")
    assert model.kernel == "eager"


def test_a_cache_makes_layers_of_a_given_class_and_grows_them_by_update() -> None:
    class Mine(DynamicLayer):  # type: ignore[misc]
        pass

    cache = Cache(layer_class_to_replicate=Mine)
    assert cache.layer_class_to_replicate is Mine
    first = torch.zeros(1, 2, 3, 4)
    cache.update(first, first, 0)
    keys, _ = cache.update(first, first, 0)
    assert [type(layer) for layer in cache.layers] == [Mine]
    assert keys.shape == (1, 2, 6, 4)
    assert cache.get_seq_length() == 6
    # A layer of one's own can be appended, and is cropped and reordered with the others.
    cache.layers.append(DynamicLayer())
    cache.update(first, first, 1)
    cache.crop(-1)
    assert cache.layers[1].keys.shape[2] == 2


def test_peft_has_its_table_of_feed_forward_maps() -> None:
    assert TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING["opt"] == ["fc2"]
