"""Losses of continuations and of text: ℓ(y|x) = −log p(y|x), batched, padding-proof."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tuner.backpack import texts_recur
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import prompts_end_at
from tuner.editing.task import Example, LossKind
from tuner.errors import EditError, TaskError


@final
@dataclass(frozen=True)
class Continuation:
    """A prompt's tokens followed by a target's, which start at `start`."""

    ids: tuple[int, ...]
    start: int

    @property
    def target_length(self) -> int:
        """How many tokens are judged."""
        return len(self.ids) - self.start


def encode_continuation(model: LanguageModel, prompt: str, target: str) -> Continuation:
    """Return prompt and target as tokens of one text, as `encode_continuations`.

    Raises:
        TaskError: the target has no token, or both together exceed the model's context.
    """
    return encode_continuations(model, [(prompt, target)])[0]


def encode_continuations(
    model: LanguageModel, texts: Sequence[tuple[str, ...]]
) -> list[Continuation]:
    """Return each prompt and what follows it, in one piece or several, as tokens of one text.

    A target's tokens are those that it has behind its prompt; see `tokens` for the rule. The
    published studies encode both apart, which byte-level tokenizers hardly tell from this.

    Raises:
        TaskError: a target has no token, or a text exceeds the model's context.
    """
    continuations = []
    for (prompt, *targets), read in zip(texts, model.read(texts), strict=True):
        if read.ends[0] == read.ends[1]:
            raise TaskError(f"The target {targets[0]!r} has no token.")
        if len(read.ids) > model.context_length:
            raise TaskError(
                f"A prompt and target of {len(read.ids)} tokens exceed the model's context of "
                f"{model.context_length}: {prompt[:60]!r}…"
            )
        continuations.append(Continuation(ids=read.ids, start=read.ends[0]))
    return continuations


def continuation_losses(
    network: PreTrainedModel, batch: Sequence[Continuation], pad_id: int
) -> Float[Tensor, " batch"]:
    """Return ℓ of each target given its prompt, summed over the target's tokens, in nats.

    Targets are found by position, never by token id, so a target may hold the padding token.
    """
    read = read_targets(network, batch, pad_id)
    return torch.where(read.judged, token_losses(read.logits, read.tokens), 0.0).sum(dim=1)


@torch.no_grad()
def predicted_tokens(
    network: PreTrainedModel, batch: Sequence[Continuation], pad_id: int
) -> list[Int[Tensor, " target"]]:
    """Return the most likely token at each place of each target, the true ones before it given.

    Raises:
        EditError: the logits are NaN, so that no token is the most likely.
    """
    read = read_targets(network, batch, pad_id)
    highest, tokens = read.logits.max(dim=-1)
    if torch.isnan(highest[read.judged]).any():
        raise EditError("The edited model's predictions on the task are NaN.")
    return [row[judged].cpu() for row, judged in zip(tokens, read.judged, strict=True)]


@torch.no_grad()
def predicted_log_probs(
    network: PreTrainedModel, batch: Sequence[Continuation], pad_id: int
) -> list[Float[Tensor, "target vocabulary"]]:
    """Return log p of all tokens at each place of each target, the true ones before it given."""
    read = read_targets(network, batch, pad_id)
    precise = read.logits.to(torch.promote_types(read.logits.dtype, torch.float32))
    log_probs = precise.log_softmax(dim=-1)
    return [row[judged].cpu() for row, judged in zip(log_probs, read.judged, strict=True)]


@final
@dataclass(frozen=True)
class TargetLogits:
    """What a model says at the places that predict a batch's targets; `judged` marks them."""

    first: int
    """Where in each row the first of these tokens stands."""

    logits: Float[Tensor, "batch length vocabulary"]
    tokens: Int[Tensor, "batch length"]
    judged: Bool[Tensor, "batch length"]


def read_targets(
    network: PreTrainedModel, batch: Sequence[Continuation], pad_id: int
) -> TargetLogits:
    """Return what a model says at the places that predict the targets of a batch, in one pass."""
    device = network.device
    length = max(len(row.ids) for row in batch)
    ids = torch.full((len(batch), length), pad_id)
    mask = torch.zeros((len(batch), length), dtype=torch.long)
    judged = torch.zeros((len(batch), length), dtype=torch.bool)
    for index, row in enumerate(batch):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        mask[index, : len(row.ids)] = 1
        judged[index, row.start : len(row.ids)] = True
    ids, mask, judged = ids.to(device), mask.to(device), judged.to(device)
    # Logits cost most of a small model's pass: ask for the columns that predict a target.
    first = min(row.start for row in batch) - 1
    columns = torch.arange(first, length - 1, device=device)
    with prompts_end_at([row.start for row in batch]), texts_recur():
        logits = network(
            input_ids=ids, attention_mask=mask, logits_to_keep=columns, use_cache=False
        ).logits
    return TargetLogits(
        first + 1, logits, tokens=ids[:, first + 1 :], judged=judged[:, first + 1 :]
    )


def token_losses(
    logits: Float[Tensor, "batch length vocabulary"], targets: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length"]:
    """Return −log p of each target token, computed in float32 at least."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = F.cross_entropy(precise.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.reshape(targets.shape)


def combine_losses(
    loss: LossKind, target: Float[Tensor, " rows"], contrast: Float[Tensor, " rows"] | None
) -> Float[Tensor, " rows"]:
    """Return the loss kind's value from the losses of target and contrast.

    With token means this is the training loss, with sums the value that success is judged by.
    Source: Hewitt et al. 2024 (arXiv:2402.06155), §3 and their code.
    """
    match loss:
        case LossKind.LIKELIHOOD:
            return target
        case LossKind.SUPPRESS:
            return -target
        case LossKind.BALANCE if contrast is not None:
            return (target - contrast).abs()
        case LossKind.PREFER if contrast is not None:
            return target - contrast
    raise TaskError(f"The loss {loss} needs a contrast.")


@final
@dataclass(frozen=True)
class EncodedExample:
    """An example as tokens."""

    target: Continuation
    contrast: Continuation | None


def encode_example(model: LanguageModel, example: Example) -> EncodedExample:
    """Return an example as tokens.

    Raises:
        TaskError: a target has no token, or the example exceeds the model's context.
    """
    return encode_examples(model, [example])[0]


def encode_examples(model: LanguageModel, examples: Sequence[Example]) -> list[EncodedExample]:
    """Return examples as tokens.

    Raises:
        TaskError: a target has no token, or an example exceeds the model's context.
    """
    targets = encode_continuations(model, [(row.prompt, row.target) for row in examples])
    contrasts = iter(
        encode_continuations(
            model, [(row.prompt, row.contrast) for row in examples if row.contrast is not None]
        )
    )
    return [
        EncodedExample(target, None if row.contrast is None else next(contrasts))
        for row, target in zip(examples, targets, strict=True)
    ]


MeanOver = Literal["examples", "tokens"]


def shares_of(batch: Sequence[EncodedExample], mean_over: MeanOver) -> Float[Tensor, " batch"]:
    """Return how much each example counts in a batch's mean, 1 on average.

    In a mean over tokens an example counts by the tokens of its target: the mean of Σ −log p per
    token over all examples' targets is then that of all their tokens.
    """
    if mean_over == "examples":
        return torch.ones(len(batch))
    lengths = torch.tensor([float(row.target.target_length) for row in batch])
    return lengths / lengths.mean()


def training_losses(
    network: PreTrainedModel, loss: LossKind, batch: Sequence[EncodedExample], pad_id: int
) -> Float[Tensor, " batch"]:
    """Return each example's training loss, formed from token means."""
    return _example_losses(network, loss, batch, pad_id, mean=True)


def success_losses(
    network: PreTrainedModel, loss: LossKind, batch: Sequence[EncodedExample], pad_id: int
) -> Float[Tensor, " batch"]:
    """Return each example's loss as success is judged by it, formed from sums over tokens."""
    return _example_losses(network, loss, batch, pad_id, mean=False)


def _example_losses(
    network: PreTrainedModel,
    loss: LossKind,
    batch: Sequence[EncodedExample],
    pad_id: int,
    *,
    mean: bool,
) -> Float[Tensor, " batch"]:
    rows = [example.target for example in batch]
    if loss.needs_contrast:
        rows += [example.contrast for example in batch if example.contrast is not None]
    losses = continuation_losses(network, rows, pad_id)
    if mean:
        losses = losses / torch.tensor([row.target_length for row in rows], device=losses.device)
    if not loss.needs_contrast:
        return combine_losses(loss, losses, None)
    return combine_losses(loss, losses[: len(batch)], losses[len(batch) :])


def in_length_order(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of row numbers of similar length, longest first.

    The order depends on the lengths alone, so the same rows always share the same batches.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@final
@dataclass(frozen=True)
class BlockChanges:
    """What an edit does to each of some blocks of text, summed over its predicted tokens."""

    losses: Float[Tensor, " blocks"]
    """The rise of the loss, in nats, as float64."""

    divergences: Float[Tensor, " blocks"]
    """KL(base‖edited) of the predictions, in nats, as float64."""


def read_blocks(
    network: PreTrainedModel, ids: Int[Tensor, "blocks length"]
) -> Float[Tensor, "blocks predicted vocabulary"]:
    """Return the logits that predict each token of blocks but the first, under the weights now."""
    with texts_recur():
        logits: Tensor = network(input_ids=ids, use_cache=False).logits[:, :-1]
    return logits


@torch.no_grad()
def block_losses(
    network: PreTrainedModel, blocks: Int[Tensor, "blocks length"]
) -> Float[Tensor, " blocks"]:
    """Return the loss of each block, summed over its predicted tokens, in nats, as float64."""
    ids = blocks.to(network.device)
    logits = read_blocks(network, ids)
    return token_losses(logits, ids[:, 1:]).sum(dim=1, dtype=torch.float64).cpu()


# A vocabulary's worth of numbers at each place is large, and this needs several of them.
_PLACES_AT_ONCE = 256


@torch.no_grad()
def token_divergences(
    base: Float[Tensor, "*places vocabulary"], edited: Float[Tensor, "*places vocabulary"]
) -> Float[Tensor, " *places"]:
    """Return KL(base‖edited) at each place, in nats, in float32 at least.

    As Σ p·(eᵈ − 1 − d) with d = log q − log p: no term is negative and each is of second order, so
    a small divergence is not lost among the rounding errors of large terms that cancel out.
    """
    precise = torch.promote_types(base.dtype, torch.float32)
    width = base.shape[-1]
    parts = []
    for before, after in zip(
        torch.split(base.reshape(-1, width), _PLACES_AT_ONCE),
        torch.split(edited.reshape(-1, width), _PLACES_AT_ONCE),
        strict=True,
    ):
        log_p = before.to(precise).log_softmax(dim=-1)
        log_q = after.to(precise).log_softmax(dim=-1)
        p, q, ratio = log_p.exp(), log_q.exp(), log_q - log_p
        near = p * (torch.expm1(ratio) - ratio)
        # Far apart nothing cancels out, but e^d may be infinite; where p is 0, q is what is left.
        far = torch.where(p == 0, q, q - p - p * ratio)
        parts.append(torch.where(ratio.abs() < 1, near, far).sum(dim=-1))
    joined = torch.cat(parts) if parts else base.new_zeros(0, dtype=precise)
    return joined.reshape(base.shape[:-1])
