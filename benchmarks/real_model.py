"""A pretrained language model on published tasks: what is gained under a budget, and what it cost.

    python benchmarks/real_model.py MODEL --general TEXT --tasks FOLDER... --work FOLDER

MODEL is a folder with safetensors, TEXT general text that is not the tasks' own, and each task a
folder that `tuner data import` wrote. For every task, editor and trial the study searches under the
budgets, certifies and retests its winners; a study that was stopped goes on. The rows say, for each
budget, what fresh text decided and what it did not.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from tuner.evaluation.deviation.budget import Budget
from tuner.search import Study, StudyConfig
from tuner.search.observers import NO_TRACKING
from tuner.trial.records import StudyResultRecord

SPACES = ("lora", "full_finetuning", "memit", "grace")
BUDGETS = (1e-3, 1e-4)


def main() -> None:
    """Run the studies and write one row per task, editor and budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--general", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, nargs="+", required=True)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--edits", type=int, default=None)
    parser.add_argument("--block-length", type=int, default=128)
    parser.add_argument("--test-seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_model.json"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for task in options.tasks:
        for space in options.spaces:
            config = StudyConfig(
                name=f"{task.name}-{space}",
                model=str(options.model),
                task=str(task),
                edits=options.edits,
                general=str(options.general),
                block_length=options.block_length,
                space=space,
                trials=options.trials,
                test_seeds=options.test_seeds,
                budget=Budget(epsilons=BUDGETS),
                tracking=(NO_TRACKING,),
                workers=1,
            )
            began = time.process_time()
            result = Study(config, folder=options.work).run().record
            rows += _rows(result, time.process_time() - began)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-len(BUDGETS) :], indent=1), flush=True)


def _rows(result: StudyResultRecord, driver_seconds: float) -> list[dict[str, Any]]:
    """Return what a study says of each budget."""
    records = [entry.record for entry in result.entries if entry.record is not None]
    phases: dict[str, float] = {}
    for record in records:
        for phase, seconds in record.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    tokens = sum(epoch.deviation.tokens for record in records for epoch in record.epochs) + sum(
        answer.deviation.tokens for record in records for answer in record.answers
    )
    base = next((record.base for record in records if record.base is not None), None)
    shared = {
        "task": Path(result.summary.task).name,
        "space": result.summary.space,
        "trials": len(records),
        "base_success": None if base is None else base.success,
        "seconds_by_phase": {phase: round(value, 1) for phase, value in phases.items()},
        "general_tokens_read": tokens,
        "driver_cpu_seconds": round(driver_seconds, 1),
        "peak_gib_of_children": round(
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2
        ),
    }
    rows: list[dict[str, Any]] = []
    for epsilon in result.summary.epsilons:
        winner = next((one for one in result.winners if one.epsilon == epsilon), None)
        row: dict[str, Any] = {**shared, "epsilon": epsilon, "winner": None}
        if winner is not None:
            fresh = winner.certificate.deviation
            row["winner"] = {
                "trial": winner.trial,
                "alpha": winner.validation.alpha,
                "gain_validation": winner.validation.gain,
                "gain_test": winner.test_gain,
                "gain_test_interval": None
                if winner.test_gain_interval is None
                else winner.test_gain_interval.model_dump(),
                "exact": winner.validation.scores.exact,
                "verdict": winner.certificate.verdict.value,
                "form": winner.certificate.form,
                "deviation": fresh.model_dump(mode="json"),
                "seeds": len(winner.test),
                "seeds_within_budget": winner.seeds_within_budget,
            }
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
