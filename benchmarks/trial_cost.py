"""What a resident worker saves: the same trial on one, and in a fresh process each time.

    python benchmarks/trial_cost.py --out benchmarks/results/trial_cost.json

Both run the same hyperparameters with the same seed; the fresh process starts with a warm disk
cache of base losses, as it would in a real service. Times are wall seconds of one run; compare
their ratios, not the seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

PHASES = ("import", "load", "edit", "success", "deviation")
SETTINGS = {"learning_rate": 3e-3, "rank": 8, "kl_weight": 0.1, "epochs": 10}
TRIAL = """
import json, time
start = time.perf_counter()
import torch, tuner
torch.set_num_threads(1)
from tuner.editing.corpus import load_general_text
imported = time.perf_counter()
model = tuner.load_model("builtin:neox")
evaluator = tuner.Evaluator(model, tuner.load_task("country_capital"), tuner.Budget(),
                    load_general_text(None, model))
loaded = time.perf_counter()
editor = tuner.find_editor("lora").model_validate(json.loads('{settings}'))
record = tuner.run_editor(evaluator, editor, seed=0).record
print(json.dumps({{"import": imported - start, "load": loaded - imported,
                   "total": time.perf_counter() - start,
                   "success_at": [a.success for a in record.answers],
                   **{{phase.value: s for phase, s in record.seconds.items()}}}}))
"""


def fresh() -> dict:
    start = time.perf_counter()
    code = TRIAL.format(settings=json.dumps(SETTINGS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found["total"] = time.perf_counter() - start
    return found


def resident(count: int) -> list[dict]:
    import tuner
    from tuner.editing.corpus import load_general_text

    model = tuner.load_model("builtin:neox")
    task = tuner.load_task("country_capital")
    evaluator = tuner.Evaluator(model, task, tuner.Budget(), load_general_text(None, model))
    editor = tuner.find_editor("lora").model_validate(SETTINGS)
    rows = []
    for _ in range(count + 1):
        start = time.perf_counter()
        record = tuner.run_editor(evaluator, editor, seed=0).record
        rows.append(
            {
                "import": 0.0,
                "load": 0.0,
                "total": time.perf_counter() - start,
                "success_at": [answer.success for answer in record.answers],
                **{phase.value: seconds for phase, seconds in record.seconds.items()},
            }
        )
    return rows[1:]  # the first one fills the caches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trial_cost.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warm = resident(args.repeats)
    cold = [fresh() for _ in range(args.repeats)]
    same = all(row["success_at"] == warm[0]["success_at"] for row in (*warm, *cold))

    def middle(rows: list[dict], key: str) -> float:
        return statistics.median(row.get(key, 0.0) for row in rows)

    summary = {
        "same_results": same,
        "fresh_over_resident": middle(cold, "total") / middle(warm, "total"),
        "share_of_a_resident_trial": {
            phase: middle(warm, phase) / middle(warm, "total") for phase in PHASES
        },
        "share_of_a_fresh_trial": {
            phase: middle(cold, phase) / middle(cold, "total") for phase in PHASES
        },
        "seconds": {
            "resident": [row["total"] for row in warm],
            "fresh": [row["total"] for row in cold],
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
