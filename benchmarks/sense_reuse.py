"""How many sense trials an hour holds, with the contextualisation reused and with plain forwards.

    python benchmarks/sense_reuse.py

The same trials of `senses` on builtin:backpack, country_capital, taking turns on two evaluators
that differ in nothing but the model's memory. Base losses, base scores and the memory itself are
made by a first trial that is not counted, as in a study that has been running for a while. Both
must give the same deviations and successes to 1e-6, or the script fails.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

import tuner
from tuner.backpack import BackpackForCausalLM
from tuner.editing.corpus import load_general_text
from tuner.files.cache import Cache
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Phase, TrialRecord
from tuner.trial.run import run_editor


def make_evaluator(reuse: bool, folder: Path) -> Evaluator:
    model = tuner.load_model("builtin:backpack")
    if not reuse:
        network = model.network
        if not isinstance(network, BackpackForCausalLM):
            raise SystemExit("builtin:backpack is no Backpack.")
        network.backpack.memory = None
    task = tuner.load_task("country_capital")
    return Evaluator(
        model, task, tuner.Budget(), load_general_text(None, model), cache=Cache(folder)
    )


def largest_difference(one: TrialRecord, other: TrialRecord) -> float:
    """Return by how much two records of the same trial differ, in success or deviation."""
    worst = 0.0
    for left, right in zip(one.epochs, other.epochs, strict=True):
        if left.deviation.tokens != right.deviation.tokens:
            raise SystemExit("Reuse and plain forwards stopped reading at different places.")
        worst = max(worst, abs(left.success - right.success))
        worst = max(worst, abs(left.deviation.estimate - right.deviation.estimate))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sense_reuse.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rates = torch.logspace(-3.5, -1.7, args.trials + 1).tolist()
    seconds: dict[str, dict[str, float]] = {"reuse": {}, "plain": {}}
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        evaluators = {
            name: make_evaluator(name == "reuse", Path(folder) / name) for name in seconds
        }
        for number, rate in enumerate(tqdm(rates)):
            editor = tuner.find_editor("senses").model_validate({"learning_rate": rate})
            records = {}
            for name, evaluator in evaluators.items():
                start = time.perf_counter()
                records[name] = run_editor(evaluator, editor, seed=number).record
                spent = {"trial": time.perf_counter() - start, **records[name].seconds}
                if number > 0:
                    for phase, value in spent.items():
                        seconds[name][phase] = seconds[name].get(phase, 0.0) + value
            worst = max(worst, largest_difference(records["reuse"], records["plain"]))
    if worst > 1e-6:
        raise SystemExit(f"Reuse and plain forwards differ by {worst:.1e}.")
    per_hour = {name: 3600 * args.trials / spent["trial"] for name, spent in seconds.items()}
    result = {
        "trials": args.trials,
        "trials_per_hour": per_hour,
        "ratio": per_hour["reuse"] / per_hour["plain"],
        "ratio_by_phase": {
            phase.value: seconds["plain"][phase] / seconds["reuse"][phase]
            for phase in Phase
            if seconds["reuse"].get(phase)
        },
        "largest_difference": worst,
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
