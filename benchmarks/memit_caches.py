"""How many MEMIT trials an hour holds, with what earlier trials kept and without.

    python benchmarks/memit_caches.py

A sweep of λ and clamp on country_capital, each combination once. "With" is what a study's worker
does: target vectors, prefixes and statistics of keys are kept and serve every trial whose
hyperparameters they do not depend on. "Without" starts every trial from an empty cache. Both give
the same edits bit for bit, which is checked; the model and the base losses stay resident in both.
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import tuner
from tuner.editing.corpus import load_general_text
from tuner.files.cache import Cache
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Phase, Rule
from tuner.trial.run import run_editor

EPSILON = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=4, help="values of λ")
    parser.add_argument("--clamps", type=int, default=3, help="values of clamp")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memit_caches.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = tuner.load_model("builtin:neox")
    task = tuner.load_task("country_capital")
    general = load_general_text(None, model)
    weights = torch.logspace(1, 4, args.weights).tolist()
    clamps = torch.logspace(-1, 0.3, args.clamps).tolist()
    sweep = list(itertools.product(clamps, weights))
    seconds = {"with": 0.0, "without": 0.0}
    edit_seconds = {"with": 0.0, "without": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        kept = Cache(Path(folder) / "kept")
        budget = tuner.Budget(epsilons=(EPSILON,))
        evaluators = {
            name: Evaluator(model, task, budget, general, cache=kept)
            for name in ("with", "without")
        }
        for number, (clamp, weight) in enumerate(tqdm(sweep)):
            editor = tuner.find_editor("memit").model_validate(
                {"clamp": clamp, "covariance_weight": weight, "depth": 0.6, "width": 0.5}
            )
            deltas = {}
            # Taking turns spreads the machine's moods over both.
            for name, evaluator in evaluators.items():
                if name == "without":
                    evaluator.auxiliary = replace(
                        evaluator.auxiliary, cache=Cache(Path(folder) / f"empty {number}")
                    )
                start = time.perf_counter()
                found = run_editor(evaluator, editor, seed=0)
                seconds[name] += time.perf_counter() - start
                edit_seconds[name] += found.record.seconds[Phase.EDIT]
                deltas[name] = found.deltas.get((Rule.FITTED, EPSILON))
            one, other = (delta.tensors() if delta else {} for delta in deltas.values())
            if not all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys()):
                raise SystemExit("A kept value changed an edit: the caches are wrong.")
    per_hour = {name: 3600 * len(sweep) / value for name, value in seconds.items()}
    result = {
        "trials": len(sweep),
        "trials_per_hour": per_hour,
        "ratio": per_hour["with"] / per_hour["without"],
        "edit_seconds_per_trial": {n: v / len(sweep) for n, v in edit_seconds.items()},
        "edit_ratio": edit_seconds["without"] / edit_seconds["with"],
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
