"""The gradient that travels with a built-in model belongs to its weights and is what it says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuner.backpack import SENSES
from tuner.editing.model import load_model
from tuner.world.gradient import _FILE, _windows, measure_gradient, shipped_gradient
from tuner.world.train import FAMILIES, SCALES, train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    train(folder, seed=1, scale=SCALES["tiny"])
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shipped_gradient_is_that_of_the_shipped_weights(name: str) -> None:
    network = load_model(f"builtin:{name}").network
    found = shipped_gradient(network)
    assert found is not None
    names = {name for name, _ in network.named_parameters()}
    assert found.tensors.keys() == names | ({SENSES} if name == "backpack" else set())
    assert found.blocks * (found.length - 1) > 2_000_000
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1e-3
    assert shipped_gradient(network) is None


def test_the_script_takes_the_mean_over_its_blocks(tiny: Path) -> None:
    measure_gradient(tiny, blocks=64)
    network = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    windows = _windows(AutoTokenizer.from_pretrained(tiny))
    batch = torch.tensor([next(windows) for _ in range(64)])
    logits = network(input_ids=batch, use_cache=False).logits[:, :-1]
    # The relative rise of the loss is the rise of its logarithm.
    cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").log().backward()
    stored = load_file(tiny / _FILE)
    for name, weight in network.named_parameters():
        assert weight.grad is not None
        expected = weight.grad / weight.grad.abs().max()
        assert torch.allclose(stored[name].float(), expected, atol=1e-3), name


def test_the_same_script_writes_the_same_file(tiny: Path) -> None:
    measure_gradient(tiny, blocks=32)
    first = (tiny / _FILE).read_bytes()
    measure_gradient(tiny, blocks=32)
    assert (tiny / _FILE).read_bytes() == first
