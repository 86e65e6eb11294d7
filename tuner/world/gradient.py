"""The mean gradient of a built-in model on general text: `python -m tuner.world.gradient DIR`.

Deviations are measured with its help (see `tuner.evaluation.deviation.mean_gradient`). It is taken
here once, on forty times the text that a study reads, so that no study has to take its own on less.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import trange
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tuner.backpack import SENSES, BackpackForCausalLM, SenseOffsets
from tuner.editing.providers import ShippedGradient
from tuner.evaluation.deviation.mean_gradient import add_gradients
from tuner.world.text import general_documents
from tuner.world.train import WINDOW

_FILE = "gradient.safetensors"
_BATCH = 32
# Certificates read the same part under seed 0.
_SEED = 1


def shipped_gradient(network: nn.Module, folder: Path | None = None) -> ShippedGradient | None:
    """Return the gradient that travels with a built-in model of exactly these weights.

    It is looked for in the folder given, or else in those of all built-in models.
    """
    digest = _weights_hash(network)
    folders = Path(__file__).parent.glob("*/") if folder is None else (folder,)
    for path in sorted(place / _FILE for place in folders if (place / _FILE).is_file()):
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            if about["weights"] != digest:
                continue
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        scaled = {name: value * about["scales"][name] for name, value in tensors.items()}
        return ShippedGradient(scaled, about["blocks"], about["length"])
    return None


def measure_gradient(folder: Path, blocks: int) -> None:
    """Take the gradient of the model in a folder on fresh general text and write it there."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    digest = _weights_hash(network)
    senses = _free_senses(network) if isinstance(network, BackpackForCausalLM) else None
    windows = _windows(AutoTokenizer.from_pretrained(folder))
    steps = trange(0, blocks, _BATCH, desc="gradient", unit="batch", mininterval=5)
    total = add_gradients(network, (torch.tensor(list(islice(windows, _BATCH))) for _ in steps))
    gradients = {
        name: weight.grad / total
        for name, weight in network.named_parameters()
        if weight.grad is not None and weight is not senses
    }
    if senses is not None and senses.grad is not None:
        shape = (network.config.vocab_size, network.config.num_senses, network.config.n_embd)
        gradients[SENSES] = senses.grad.view(shape) / total
    # Half precision rounds by parts in a thousand, but cannot hold numbers this small as they are.
    scales = {name: max(value.abs().max().item(), 1e-30) for name, value in gradients.items()}
    about = {
        "weights": digest,
        "blocks": -(-blocks // _BATCH) * _BATCH,
        "length": WINDOW,
        "scales": scales,
    }
    tensors = {name: (value / scales[name]).half() for name, value in gradients.items()}
    save_file(tensors, folder / _FILE, metadata={"about": json.dumps(about)})


def _free_senses(network: BackpackForCausalLM) -> nn.Parameter:
    """Add a vector of zeros to every sense of every token; return the vectors."""
    config = network.config
    tokens, senses = torch.arange(config.vocab_size), torch.arange(config.num_senses)
    vectors = torch.zeros(config.vocab_size * config.num_senses, config.n_embd)
    offsets = SenseOffsets(torch.cartesian_prod(tokens, senses), vectors)
    network.backpack.set_offsets(offsets)
    return offsets.vectors


def _windows(tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    documents = general_documents("confirmation", _SEED)
    rest: list[int] = []
    while True:
        for ids in tokenizer(list(islice(documents, 512)), add_special_tokens=False)["input_ids"]:
            rest += [*ids, tokenizer.eos_token_id]
        while len(rest) >= WINDOW:
            yield rest[:WINDOW]
            rest = rest[WINDOW:]


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        digest.update(name.encode() + weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the model's folder, which gets the gradient")
    parser.add_argument("--blocks", type=int, default=65_536, help=f"of {WINDOW} tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure_gradient(options.folder, options.blocks)


if __name__ == "__main__":
    main()
