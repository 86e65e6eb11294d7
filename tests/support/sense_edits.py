"""Changes of a Backpack's senses, drawn at random, for tests."""

import torch

from tuner.deltas.senses import SenseDelta
from tuner.editing.model import LanguageModel


def random_senses(
    model: LanguageModel, tokens: list[int], *, size: float = 1.0, seed: int = 0
) -> SenseDelta:
    """Return a change of two senses of each of `tokens`, in no order."""
    random = torch.Generator().manual_seed(seed)
    count = model.network.config.num_senses
    pairs = [
        (token, int(sense))
        for token in tokens
        for sense in torch.randperm(count, generator=random)[:2]
    ]
    order = torch.randperm(len(pairs), generator=random)
    vectors = torch.randn(len(pairs), model.network.config.n_embd, generator=random)
    return SenseDelta(torch.tensor(pairs)[order], size * vectors)
