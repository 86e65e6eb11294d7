"""Which senses of which tokens an example should change."""

from collections.abc import Iterator
from enum import StrEnum
from typing import final

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from tuner.backpack import BackpackForCausalLM
from tuner.backpack.contextualisation import mix
from tuner.editing.corpus import Corpus
from tuner.editing.likelihood import (
    Continuation,
    EncodedExample,
    encode_examples,
    token_losses,
)
from tuner.editing.model import LanguageModel, attention_kernel
from tuner.editing.task import ExampleSet, LossKind
from tuner.files.cache import Cache

_BATCH = 16


@final
class SenseSelection(StrEnum):
    """How much a sense matters to a text."""

    ATTENTION = "attention"
    """Its attention weights, summed over the places that predict the text."""
    GRADIENT = "gradient"
    """The size of the loss's derivative by a factor on the sense, at 1."""


def select_senses(
    network: BackpackForCausalLM,
    model: LanguageModel,
    examples: ExampleSet,
    background: Float[Tensor, "vocabulary senses"],
    *,
    selection: SenseSelection,
    per_example: int,
    background_weight: float,
) -> Int[Tensor, "pairs 2"]:
    """Return the (token, sense) pairs to change, sorted: the union of each example's best.

    An example's pairs are scored by how much they matter to its target, minus
    `background_weight` times how much they matter to general text. Pairs that do not speak for
    the target at all come last, as in the published code; here they keep their order, which is
    all there is to go by where target and contrast are a single token each.

    Source: Hewitt et al. 2024 (arXiv:2402.06155), §5, and their code, which subtracts the
    contrast's attention where the loss prefers the target to it. Their gradient selection is a
    stub; here the size of ∂ℓ/∂ε_{x,ℓ} is taken, with ε a factor of 1 on each sense.
    """
    chosen: set[tuple[int, int]] = set()
    for example in encode_examples(model, examples.rows):
        if selection is SenseSelection.ATTENTION:
            tokens, score = _attention_of(network, example, examples.loss)
        else:
            tokens, score = _gradient_of(network, example, examples.loss)
        ranked = (score - background_weight * background[tokens]).flatten()
        order = ranked.argsort(descending=True, stable=True)
        silent = score.flatten()[order] <= 0
        best = order[silent.to(torch.int8).argsort(stable=True)][:per_example]
        senses = score.shape[1]
        chosen |= {(int(tokens[place // senses]), int(place % senses)) for place in best}
    return torch.tensor(sorted(chosen), device=model.device)


def background_of(
    network: BackpackForCausalLM,
    model: LanguageModel,
    corpus: Corpus,
    selection: SenseSelection,
    cache: Cache | None,
) -> Float[Tensor, "vocabulary senses"]:
    """Return how much each sense matters to a block of general text, on average."""
    key = {
        "model": model.fingerprint,
        "corpus": corpus.hash,
        "selection": selection.value,
        "attention": attention_kernel(network),
        "device": model.device_name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    saved = None if cache is None else cache.load("sense_background", key)
    if saved is None:
        config = network.config
        table = torch.zeros(config.vocab_size, config.num_senses, device=model.device)
        measure = _attention if selection is SenseSelection.ATTENTION else _gradient
        for part in torch.split(corpus.blocks, _BATCH):
            ids = part.to(model.device)
            judged = torch.ones_like(ids, dtype=torch.bool)
            judged[:, 0] = False
            for tokens, score in measure(network, ids, judged):
                table.index_add_(0, tokens, score.abs())
        saved = {"table": table / len(corpus.blocks)}
        if cache is not None:
            cache.save("sense_background", key, saved)
    return saved["table"].to(model.device)


_Score = tuple[Int[Tensor, " tokens"], Float[Tensor, "tokens senses"]]
"""The tokens of a text, each once, and a number for each of their senses.

Its last token is none of them: what it means shows in what comes after.
"""


@torch.no_grad()
def _attention(network: BackpackForCausalLM, ids: Tensor, judged: Tensor) -> Iterator[_Score]:
    """Yield per row each sense's weights, summed over the places that predict what is judged."""
    weights = network.backpack.contextualise(ids).weights().float()
    predicts = judged.roll(-1, dims=1)
    taken = (weights * predicts[:, None, :, None]).sum(dim=2).transpose(1, 2)
    for row, of_places in zip(ids, taken, strict=True):
        yield _by_token(row, of_places)


@torch.enable_grad()
def _gradient(network: BackpackForCausalLM, ids: Tensor, judged: Tensor) -> Iterator[_Score]:
    """Yield per row the derivative of the judged tokens' loss by a factor on each sense."""
    with torch.no_grad():
        weights = network.backpack.contextualise(ids).weights()
        senses = network.backpack.senses(ids)
    factors = torch.ones(*senses.shape[:3], 1, device=ids.device, requires_grad=True)
    logits = network.lm_head(mix(weights, senses * factors.to(senses.dtype)))
    losses = token_losses(logits[:, :-1], ids[:, 1:]) * judged[:, 1:]
    (gradient,) = torch.autograd.grad(losses.sum(), factors)
    for row, of_places in zip(ids, gradient.squeeze(-1).float(), strict=True):
        yield _by_token(row, of_places)


def _by_token(ids: Tensor, of_places: Tensor) -> _Score:
    tokens, place = torch.unique(ids[:-1], return_inverse=True)
    summed = of_places.new_zeros(len(tokens), of_places.shape[1])
    return tokens, summed.index_add(0, place, of_places[:-1])


def _sequence(network: BackpackForCausalLM, text: Continuation) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([text.ids], device=network.device)
    judged = torch.arange(len(text.ids), device=network.device)[None] >= text.start
    return ids, judged


def _attention_of(network: BackpackForCausalLM, example: EncodedExample, loss: LossKind) -> _Score:
    target = next(_attention(network, *_sequence(network, example.target)))
    if example.contrast is None or not loss.needs_contrast:
        return target
    contrast = next(_attention(network, *_sequence(network, example.contrast)))
    return _sum(target, contrast, sign=-1.0 if loss is LossKind.PREFER else 1.0)


def _gradient_of(network: BackpackForCausalLM, example: EncodedExample, loss: LossKind) -> _Score:
    target = next(_gradient(network, *_sequence(network, example.target)))
    if example.contrast is None or not loss.needs_contrast:
        return target[0], target[1].abs()
    # Both losses that have a contrast are, up to their sign, the difference of its loss and the
    # target's.
    contrast = next(_gradient(network, *_sequence(network, example.contrast)))
    tokens, summed = _sum(target, contrast, sign=-1.0)
    return tokens, summed.abs()


def _sum(one: _Score, other: _Score, *, sign: float) -> _Score:
    tokens, place = torch.unique(torch.cat([one[0], other[0]]), return_inverse=True)
    scores = torch.cat([one[1], sign * other[1]])
    return tokens, scores.new_zeros(len(tokens), scores.shape[1]).index_add(0, place, scores)
