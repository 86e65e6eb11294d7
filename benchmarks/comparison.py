"""What the comparisons of editors share: a study per task and editor, with equal trials."""

import argparse
import json
from pathlib import Path
from typing import Any

import tuner
from tuner.search import Study, StudyConfig
from tuner.trial.records import StudyResultRecord

Row = dict[str, Any]
_STUDY = ("model", "task", "editor")


def comparison_parser(about: str, *, name: str, trials: int) -> argparse.ArgumentParser:
    """Return the options that every comparison has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-seeds", type=int, default=1)
    parser.add_argument("--confirm-top", type=int, default=1)
    parser.add_argument("--studies", type=Path, default=Path("tuner-studies") / name)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    return parser


def run_study(
    model: str, task: str, editor: str, epsilons: tuple[float, ...], args: argparse.Namespace
) -> StudyResultRecord:
    """Return what a study found; run what of it is still to do."""
    print(f"{model}, {task}, {editor}", flush=True)
    config = StudyConfig(
        name=f"{model.partition(':')[2]}-{task}-{editor}",
        model=model,
        task=task,
        space=editor,
        trials=args.trials,
        seed=args.seed,
        budget=tuner.Budget(epsilons=epsilons),
        confirm_top=args.confirm_top,
        test_seeds=args.test_seeds,
    )
    return Study(config, folder=args.studies).run().record


def known_rows(path: Path) -> list[Row]:
    """Return the rows of earlier runs."""
    found: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return found


def keep_rows(path: Path, known: list[Row], found: list[Row]) -> list[Row]:
    """Write the rows of one more study, in the place of its older ones, and return them all."""
    new = {tuple(row[key] for key in _STUDY) for row in found}
    rows = [row for row in known if tuple(row[key] for key in _STUDY) not in new] + found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def trial_seconds(record: StudyResultRecord) -> float:
    """Return how long all trials of a study took together."""
    return sum(sum(one.record.seconds.values()) for one in record.entries if one.record)
