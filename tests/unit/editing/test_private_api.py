"""What is used of transformers beyond its public API: each use in one place, and as expected."""

import re

import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from transformers.cache_utils import DynamicCache

from tests.support.clone import ROOT
from tuner.backpack.cache_layers import OwnLayer, append_layer, layers_of
from tuner.testing.tiny_models import make_tiny_model

USES = {
    "_attn_implementation": {"tuner/editing/model.py"},
    "DynamicLayer": {"tuner/backpack/cache_layers.py"},
    "layer_class_to_replicate": {"tuner/backpack/cache_layers.py"},
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


def test_layers_of_our_own_are_kept_and_cropped_with_a_cache() -> None:
    class Mine(OwnLayer):
        pass

    cache = DynamicCache()
    first = torch.zeros(1, 2, 3, 4)
    cache.update(first, first, 0)
    own = layers_of(cache, Mine)
    assert own.get_seq_length() == 0
    own.update(first, first, 0)
    keys, _ = own.update(first, first, 0)
    assert [type(layer) for layer in own.layers] == [Mine]
    assert keys.shape == (1, 2, 6, 4)
    cache.layers.extend(own.layers)
    # The same tensors are seen from both sides, and cropped with the others.
    assert layers_of(cache, Mine).get_seq_length() == 6
    append_layer(cache)
    cache.update(first, first, 2)
    cache.crop(-1)
    assert [layer.keys.shape[2] for layer in cache.layers] == [2, 5, 2]


def test_peft_has_its_table_of_feed_forward_maps() -> None:
    assert TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING["opt"] == ["fc2"]
