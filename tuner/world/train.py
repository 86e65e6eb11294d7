"""Train a built-in model: `python -m tuner.world.train --family neox --out DIR`.

The Backpack takes up rare facts more slowly and trains twice: once as above, and once more by
`--family backpack --scale again --seed 1 --start DIR --out OTHER`.

The last steps see general text only, at a falling learning rate and without weight decay. They
leave the model at rest on the text that deviation is measured on, so that a small edit costs to
second order; otherwise the first steps of every edit would spend budget on nothing.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm import trange
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tuner.backpack import BackpackConfig
from tuner.editing.likelihood import token_losses
from tuner.world.text import tokenizer_documents, training_documents
from tuner.world.tokenizer import VOCABULARY, train_tokenizer

WINDOW = 64
# Learned positions must be seen to be of use: the windows of a Backpack lie anywhere in these.
_POSITIONS = 256
_MOVED_SHARE = 0.3

Family = Literal["neox", "backpack"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class Scale:
    """How big the model is and how long it trains."""

    steps: int
    anneal_steps: int
    batch: int
    hidden: int
    layers: int
    tokenizer_documents: int | None = None
    warmup_steps: int = 50
    learning_rate: float = 3e-3
    anneal_learning_rate: float = 1e-3
    general_share: float = 0.3
    start_share: float = 0.35
    anneal_start_share: float = 0.1

    def learning_rate_at(self, step: int) -> float:
        """Return the rate: warm-up, half a cosine down to the annealing, a line down to 0."""
        main = self.steps - self.anneal_steps
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if step < main:
            share = (step - self.warmup_steps) / (main - self.warmup_steps)
            fall = 0.5 * (1 + math.cos(math.pi * share))
            low = self.anneal_learning_rate
            return low + (self.learning_rate - low) * fall
        return self.anneal_learning_rate * (self.steps - step) / self.anneal_steps


SCALES = {
    "full": Scale(steps=4200, anneal_steps=800, batch=32, hidden=128, layers=4),
    # A second round, for a family that has not taken up the rare facts in the first.
    "again": Scale(
        steps=3000,
        anneal_steps=600,
        batch=32,
        hidden=128,
        layers=4,
        warmup_steps=100,
        learning_rate=2.5e-3,
    ),
    "tiny": Scale(steps=12, anneal_steps=3, batch=4, hidden=32, layers=2, tokenizer_documents=300),
}


def train(
    out: Path, seed: int, scale: Scale, family: Family = "neox", start: Path | None = None
) -> None:
    """Write a trained model, its tokenizer and configuration into a folder.

    It begins from scratch, or from the model of this family in the folder `start`.
    """
    if start is None:
        documents = islice(tokenizer_documents(seed), scale.tokenizer_documents)
        tokenizer = train_tokenizer(documents)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_configuration(tokenizer, scale, family))
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    _fit(model, tokenizer, seed, scale)
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _configuration(
    tokenizer: PreTrainedTokenizerFast, scale: Scale, family: Family
) -> PreTrainedConfig:
    end = tokenizer.eos_token_id
    if family == "backpack":
        return BackpackConfig(
            vocab_size=VOCABULARY,
            n_embd=scale.hidden,
            n_layer=scale.layers,
            n_head=4,
            n_positions=_POSITIONS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            scale_attn_by_inverse_layer_idx=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=scale.hidden,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        intermediate_size=4 * scale.hidden,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )


def _fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, scale: Scale
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=scale.learning_rate, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    main = scale.steps - scale.anneal_steps
    mix = windows(tokenizer, seed, scale.general_share, scale.start_share)
    general = windows(tokenizer, seed + 1, 1.0, scale.anneal_start_share)
    shifts = torch.Generator().manual_seed(seed)
    model.train()
    bar = trange(scale.steps, desc="training", unit="step", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = scale.learning_rate_at(step)
            if step >= main:
                group["weight_decay"] = 0.0
        batch = torch.tensor(list(islice(mix if step < main else general, scale.batch)))
        loss = _mean_loss(model, batch, shifts)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def _mean_loss(model: PreTrainedModel, batch: Tensor, shifts: torch.Generator) -> Tensor:
    backpack = isinstance(model.config, BackpackConfig)
    positions = None
    if backpack:
        # Most windows at the start, where general text is judged and prompts begin.
        room = _POSITIONS - batch.shape[1] + 1
        shift = torch.randint(0, room, (len(batch), 1), generator=shifts)
        moved = torch.rand(len(batch), 1, generator=shifts) < _MOVED_SHARE
        positions = torch.arange(batch.shape[1]) + shift * moved
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not backpack):
        logits = model(input_ids=batch, position_ids=positions, use_cache=False).logits
    return token_losses(logits[:, :-1], batch[:, 1:]).mean()


def windows(
    tokenizer: PreTrainedTokenizerFast, seed: int, general_share: float, start_share: float
) -> Iterator[list[int]]:
    """Yield windows of token ids, most of them cut from one long stream of documents.

    That is the shape in which general text is evaluated. A share of the windows starts at the
    start of a document instead, as the prompts of tasks do.
    """
    stream = _token_documents(tokenizer, seed, general_share)
    starts = torch.Generator().manual_seed(seed)
    rest: list[int] = []
    while True:
        at_start = torch.rand((), generator=starts).item() < start_share
        ids = [] if at_start else rest
        while len(ids) < WINDOW:
            ids = ids + next(stream)
        if not at_start:
            rest = ids[WINDOW:]
        yield ids[:WINDOW]


def _token_documents(
    tokenizer: PreTrainedTokenizerFast, seed: int, general_share: float
) -> Iterator[list[int]]:
    documents = training_documents(seed, general_share)
    end = tokenizer.eos_token_id
    while True:
        chunk = list(islice(documents, 512))
        for ids in tokenizer(chunk, add_special_tokens=False)["input_ids"]:
            yield [*ids, end]


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, default="neox")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    parser.add_argument("--start", type=Path, help="folder of a model to train further")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.out, options.seed, SCALES[options.scale], options.family, options.start)


if __name__ == "__main__":
    main()
