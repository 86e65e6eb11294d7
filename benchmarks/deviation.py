"""How much text the sequential verdict saves, and how often it is wrong.

    python benchmarks/deviation.py --deltas 204
    python benchmarks/deviation.py --deltas 204 --shard 0/2     # and 1/2 beside it

Real deltas (LoRA and full fine-tuning, random hyperparameters, several epochs and strengths) get a
verdict per budget on a search corpus, then the truth from one plain pass over 400k fresh tokens.
Every delta is one line of a file in `--rows`, so that a stopped run goes on where it was.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tuner
from tuner.editing.corpus import Corpus, TextPart, load_general_text
from tuner.editing.delta import Delta
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.likelihood import block_losses
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.files.cache import Cache, cache_folder

TRUTH_TOKENS = 400_000
SEARCH_TOKENS = 100_000
OWN_GRADIENT_TOKENS = 400_000
EPSILONS = (1e-3, 1e-4, 1e-5)
PER_EDIT = 6

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One verdict: a delta against a budget."""

    truth: float
    truth_se: float
    epsilon: float
    verdict: str
    tokens: int


def random_editor(rng: random.Random) -> Editor:
    shared = {
        "kl_weight": 10 ** rng.uniform(-1, 0),
        "batch_size": rng.choice([5, 10, 30]),
        "epochs": 6,
    }
    if rng.random() < 0.3:
        rate = 10 ** rng.uniform(-5.5, -3.3)
        return tuner.find_editor("full_finetuning").model_validate(
            {**shared, "learning_rate": rate}
        )
    return tuner.find_editor("lora").model_validate(
        {
            **shared,
            "learning_rate": 10 ** rng.uniform(-4, -1.7),
            "rank": rng.choice([1, 2, 4, 8, 16]),
            "center": rng.random(),
            "width": rng.uniform(0.1, 0.9),
        }
    )


def random_deltas(
    model: tuner.LanguageModel, task: tuner.Task, aux: Auxiliary, seed: int
) -> Iterator[tuple[str, Delta]]:
    rng = random.Random(seed)
    editor = random_editor(rng)
    for epoch, step in enumerate(editor.edit(model, task.val.canonical, aux, seed=seed), start=1):
        if epoch in (1, 3, 6):
            for alpha in (1.0, 10 ** rng.uniform(-1.3, 0)):
                label = f"{seed}: {editor.name()} epoch {epoch} alpha {alpha:.3f}"
                yield label, step.delta.scaled(alpha)


def verdicts(meter: DeviationMeter, delta: Delta) -> dict[str, dict[str, str | int]]:
    """Return the verdict for each budget, with the tokens that were pushed through the model.

    A reading that is helped by the mean gradient passes each token twice, and both count. The
    gradient itself is made once for all deltas of a model, as the base losses are.
    """
    found = {epsilon: meter.measure(delta, (epsilon,)) for epsilon in EPSILONS}
    return {
        f"{epsilon:g}": {
            "verdict": deviation.verdict(epsilon).value,
            "tokens": deviation.tokens * (2 if deviation.gradient_tokens else 1),
        }
        for epsilon, deviation in found.items()
    }


def truth(
    model: tuner.LanguageModel, blocks: torch.Tensor, base: torch.Tensor, delta: Delta
) -> tuple[float, float]:
    """Return the deviation on all of `blocks` and its standard error."""
    with model.edited(delta):
        edited = torch.cat([block_losses(model.network, part) for part in blocks.split(32)])
    difference = edited - base
    ratio = float(difference.sum() / base.sum())
    residuals = (difference - ratio * base) / base.mean()
    return ratio, float(residuals.std()) / math.sqrt(len(base))


def known_rows(folder: Path) -> dict[str, Row]:
    """Return the rows of all shards; of a delta that stands twice, the later one."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.open()]
    return {row["delta"]: row for row in map(json.loads, lines)}


def measure(args: argparse.Namespace) -> None:
    rows = known_rows(args.rows)
    args.rows.mkdir(parents=True, exist_ok=True)
    model = tuner.load_model("builtin:neox")
    task = tuner.load_task("country_capital")
    # The certificates of the library read the same source; this text is longer and its own.
    general = load_general_text(
        None,
        model,
        tokens={TextPart.CONFIRMATION: TRUTH_TOKENS, TextPart.SEARCH: OWN_GRADIENT_TOKENS},
    )
    aux = Auxiliary(general.corpus(TextPart.AUXILIARY))
    fresh = general.corpus(TextPart.CONFIRMATION).blocks
    base = torch.cat([block_losses(model.network, part) for part in fresh.split(32)])
    cache = Cache(cache_folder())
    search = general.corpus(TextPart.SEARCH)
    # The built-in model brings a gradient from 4 million tokens. Any other model takes its own on
    # its search corpus; under another name the same text makes the built-in model do so too.
    corpora = {
        "shipped gradient, 100k tokens": Corpus(
            search.name, search.blocks[: SEARCH_TOKENS // search.blocks.shape[1]]
        ),
        "own gradient, 400k tokens": Corpus("text of no known source", search.blocks),
    }
    meters = {
        name: DeviationMeter(model, corpus, confidence=0.95, cache=cache)
        for name, corpus in corpora.items()
    }
    shard, shards = map(int, args.shard.split("/"))
    seeds = [s for s in range(math.ceil(args.deltas / PER_EDIT)) if s % shards == shard]
    file = args.rows / f"shard-{shard}-of-{shards}.jsonl"
    with tqdm(total=len(seeds) * PER_EDIT) as bar, file.open("a") as out:
        for seed in seeds:
            for label, delta in random_deltas(model, task, aux, seed):
                bar.update()
                row = rows.get(label)
                if row is not None and not args.again:
                    continue
                try:
                    found = {name: verdicts(meter, delta) for name, meter in meters.items()}
                    true = (row["truth"], row["truth_se"]) if row else None
                    true = true or truth(model, fresh, base, delta)
                except tuner.TunerError:
                    continue  # an edit that gives no number has no verdict either
                row = {
                    "delta": label,
                    "truth": true[0],
                    "truth_se": true[1],
                    "verdicts": found,
                }
                out.write(json.dumps(row) + "\n")
                out.flush()


def summarise(rows: list[Row], meter: str, search_tokens: int) -> dict[str, object]:
    cases = [
        Case(row["truth"], row["truth_se"], float(epsilon), case["verdict"], case["tokens"])
        for row in rows
        for epsilon, case in row["verdicts"][meter].items()
    ]
    decided = [case for case in cases if case.verdict != "unresolved"]
    wrong = [c for c in decided if (c.verdict == "within") != (c.truth <= c.epsilon)]
    clear = [case for case in cases if case.truth > 3 * case.epsilon]
    found = [c for c in clear if c.verdict == "over"]
    quick = [c for c in found if c.tokens <= 0.2 * search_tokens]
    return {
        "deltas": len(rows),
        "verdicts": len(cases),
        "decided": len(decided),
        "wrong": len(wrong),
        "wrong_share": len(wrong) / max(len(decided), 1),
        "wrong_beyond_2_se_of_the_truth": sum(
            abs(c.truth - c.epsilon) > 2 * c.truth_se for c in wrong
        ),
        "clear_violators": len(clear),
        "clear_violators_decided": len(found) / max(len(clear), 1),
        "clear_violators_decided_with_a_fifth_of_the_tokens": len(quick) / max(len(clear), 1),
        "clear_violators_median_share_of_tokens": statistics.median(
            [c.tokens / search_tokens for c in clear] or [math.nan]
        ),
        "median_saving": statistics.median(search_tokens / c.tokens for c in cases),
        "per_epsilon": {
            f"{epsilon:g}": {
                "decided": sum(c.epsilon == epsilon for c in decided),
                "wrong": sum(c.epsilon == epsilon for c in wrong),
                "unresolved": sum(
                    c.epsilon == epsilon and c.verdict == "unresolved" for c in cases
                ),
                "median_saving": statistics.median(
                    search_tokens / c.tokens for c in cases if c.epsilon == epsilon
                ),
            }
            for epsilon in EPSILONS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deltas", type=int, default=204)
    parser.add_argument("--shard", default="0/1", help="this process's part, such as 0/2")
    parser.add_argument("--again", action="store_true", help="measure known verdicts again")
    parser.add_argument("--rows", type=Path, default=Path("benchmarks/results/deviation"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/deviation.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(args)
    rows = list(known_rows(args.rows).values())
    summary = {
        name: summarise(rows, name, tokens)
        for name, tokens in (
            ("shipped gradient, 100k tokens", SEARCH_TOKENS),
            ("own gradient, 400k tokens", OWN_GRADIENT_TOKENS),
        )
    }
    args.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
