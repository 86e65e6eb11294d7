"""What a sampler that sees the constraint gains over random search and a blind TPE.

    python benchmarks/search_efficiency.py record --trials 80     # real trials, once
    python benchmarks/search_efficiency.py surrogate --seeds 20   # samplers on what was recorded
    python benchmarks/search_efficiency.py real --repeats 3       # samplers on real trials

`record` runs quasi-random trials of `search_spaces/lora.yaml` on country_capital and keeps one
line for each. `surrogate` lays a Gaussian process through them and lets the samplers search it:
with the answer of the rule `fitted` as objective, and with the last epoch as it stands, where the
budget binds. A stopped `record` or `real` goes on where it was.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from tqdm import tqdm

import tuner
from tuner.editing.corpus import load_general_text
from tuner.search import Space, load_space
from tuner.search.objective import BUDGET, Objective, log_ratio, objective_of
from tuner.search.proposer import Proposer
from tuner.trial.records import Rule, TrialRecord

EPSILON = 1e-3
ARMS = ("default", "random", "blind TPE")
DATA = Path("benchmarks/results/search_trials.jsonl")
Point = dict[str, Any]


def make_evaluator(budget: tuner.Budget) -> tuner.Evaluator:
    model = tuner.load_model("builtin:neox")
    task = tuner.load_task("country_capital")
    return tuner.Evaluator(model, task, budget, load_general_text(None, model))


def record(args: argparse.Namespace) -> None:
    space = load_space("lora")
    args.data.parent.mkdir(parents=True, exist_ok=True)
    done = len(args.data.read_text().splitlines()) if args.data.exists() else 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(seed=0, scramble=True))
    evaluator = make_evaluator(tuner.Budget())
    with args.data.open("a") as out:
        for number in tqdm(range(args.trials), initial=done):
            trial = study.ask()
            point = space.draw(trial)
            if number < done:
                continue
            found = tuner.run_editor(evaluator, space.build(point), seed=number).record
            study.tell(trial, 0.0)
            out.write(json.dumps({"point": point, "record": slim(found)}) + "\n")
            out.flush()


def slim(found: TrialRecord) -> Any:
    """Return a record without the single rows, which nobody reads here."""
    base = found.base.model_copy(update={"row_success": ()}) if found.base else None
    answers = tuple(
        answer.model_copy(update={"scores": answer.scores.model_copy(update={"row_success": ()})})
        for answer in found.answers
    )
    return found.model_copy(update={"base": base, "answers": answers}).model_dump(mode="json")


@dataclass(frozen=True)
class Surrogate:
    """A search problem whose values are read off recorded trials."""

    name: str
    base: float
    value: GaussianProcessRegressor
    constraint: GaussianProcessRegressor | None

    def look(self, point: Point) -> Objective:
        """Return success and log(deviation/ε) at a point."""
        place = np.array([features(point)])
        value = float(np.clip(self.value.predict(place)[0], 0, 1))
        over = -1.0 if self.constraint is None else float(self.constraint.predict(place)[0])
        return Objective(value=value, constraints={BUDGET: max(-5.0, min(5.0, over))})


def features(point: Point) -> list[float]:
    return [
        math.log10(point["learning_rate"]) / 1.5,
        math.log(point["rank"]) / 2,
        3 * point["center"],
        3 * point["width"],
        math.log(point["kl_weight"]),
    ]


def fit(places: np.ndarray, values: np.ndarray) -> GaussianProcessRegressor:
    kernel = ConstantKernel(0.1) * Matern([1.0] * places.shape[1], (0.3, 20), nu=2.5)
    kernel += WhiteKernel(1e-3, (1e-5, 1e-1))
    model = GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0
    )
    return model.fit(places, values)


def surrogates(data: Path) -> list[Surrogate]:
    rows = [json.loads(line) for line in data.open()]
    records = [TrialRecord.model_validate(row["record"]) for row in rows]
    good = [(row["point"], r) for row, r in zip(rows, records, strict=True) if r.failure is None]
    places = np.array([features(point) for point, _ in good])
    base = next(r.base.success for _, r in good if r.base is not None)
    fitted = np.array([r.answer(EPSILON, Rule.FITTED).success for _, r in good])
    last = np.array([r.epochs[-1].success for _, r in good])
    over = np.array([log_ratio(r.epochs[-1].deviation, EPSILON) for _, r in good])
    return [
        Surrogate("fitted", base, fit(places, fitted), None),
        Surrogate("last epoch", base, fit(places, last), fit(places, over)),
    ]


def told(space: Space, point: Point, seen: Objective, *, blind: bool, base: float) -> FrozenTrial:
    """Return the trial as the arm's sampler is told of it."""
    value = base if blind and not seen.feasible else seen.value
    return create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params=point,
        distributions=space.active(point),
        constraints=None if blind else seen.constraints,
    )


def propose(arm: str, space: Space, history: list[FrozenTrial], seed: int) -> Point:
    name = {"default": "auto", "random": "random"}.get(arm, "tpe")
    return Proposer(space, name, seed=seed).propose(history, len(history))


def surrogate(args: argparse.Namespace) -> dict[str, Any]:
    space = load_space("lora")
    summary: dict[str, Any] = {"recorded_trials": len(args.data.read_text().splitlines())}
    for problem in surrogates(args.data):
        curves: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
        for seed in tqdm(range(args.seeds), desc=problem.name):
            for arm in ARMS:
                history: list[FrozenTrial] = []
                best, curve = problem.base, []
                for _ in range(args.trials):
                    point = propose(arm, space, history, seed)
                    seen = problem.look(point)
                    if seen.feasible:
                        best = max(best, seen.value)
                    curve.append(best)
                    blind = arm == "blind TPE"
                    history.append(told(space, point, seen, blind=blind, base=problem.base))
                curves[arm].append(curve)
        summary[problem.name] = compare(curves, problem.base)
    return summary


def compare(curves: dict[str, list[list[float]]], base: float) -> dict[str, Any]:
    """Return the median best so far, and how soon the default reaches random's last value."""
    length = len(curves["random"][0])
    half = length // 2
    goal = statistics.median(curve[-1] for curve in curves["random"])
    middle = {
        arm: [statistics.median(values) for values in zip(*found, strict=True)]
        for arm, found in curves.items()
    }
    reached = next((i + 1 for i, value in enumerate(middle["default"]) if value >= goal), None)
    return {
        "base": base,
        f"median_best_at_{half}": {arm: curve[half - 1] for arm, curve in middle.items()},
        f"median_best_at_{length}": {
            arm: curve[-1] for arm, curve in middle.items() if len(curve) == length
        },
        f"trials_until_default_reaches_random_at_{length}": reached,
        "gain_ratio_default_at_half_over_random_at_end": (middle["default"][half - 1] - base)
        / max(goal - base, 1e-9),
        "seeds": len(curves["random"]),
    }


def real(args: argparse.Namespace) -> dict[str, Any]:
    """Run the samplers on real trials of the rule `fitted`; random search gets twice the trials."""
    space = load_space("lora")
    args.real_data.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    if args.real_data.exists():
        for line in args.real_data.open():
            row = json.loads(line)
            kept[row["arm"], row["seed"], row["number"]] = row
    # One budget: the others would be measured and never looked at.
    evaluator = make_evaluator(tuner.Budget(epsilons=(EPSILON,)))
    curves: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    base = 0.0
    seeds = [args.seed] if args.seed is not None else range(args.repeats)
    with args.real_data.open("a") as out:
        for seed, arm in tqdm([(s, a) for s in seeds for a in ARMS]):
            history: list[FrozenTrial] = []
            best, curve = 0.0, []
            for number in range(args.trials if arm == "random" else args.trials // 2):
                point = propose(arm, space, history, seed)
                row = kept.get((arm, seed, number))
                if row is None or row["point"] != point:
                    found = tuner.run_editor(evaluator, space.build(point), seed=number).record
                    row = {"arm": arm, "seed": seed, "number": number, "point": point}
                    row["record"] = slim(found)
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                found = TrialRecord.model_validate(row["record"])
                base = found.base.success if found.base else base
                seen = objective_of(found, Rule.FITTED, EPSILON)
                best = max(best, seen.value if seen.feasible else base)
                curve.append(best)
                blind = arm == "blind TPE"
                history.append(told(space, point, seen, blind=blind, base=base))
            curves[arm].append(curve)
    return compare(curves, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "surrogate", "real"))
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, help="only this repeat, to run several side by side")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--real-data", type=Path, default=DATA.with_name("search_real.jsonl"))
    parser.add_argument("--out", type=Path, default=DATA.with_name("search_efficiency.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "record":
        record(args)
        return
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[args.what] = surrogate(args) if args.what == "surrogate" else real(args)
    args.out.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps(known[args.what], indent=2))


if __name__ == "__main__":
    main()
