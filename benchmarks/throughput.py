"""What orchestration costs: trials per hour of trials that do nothing but sleep.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json

Each study runs for real (ledger, sampler, Ray, resident workers with a loaded model); only its
trials sleep for a fixed time and leave a made-up record, which gains nothing, so that no phase
follows the search. Ideally there are as many trials at a time as slots and no time between them.
All studies follow each other on the same machine; compare their ratios, not the seconds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from tuner.editing.editor import Editor
from tuner.evaluation.deviation.budget import Budget, Deviation, Verdict
from tuner.evaluation.scores import Scores
from tuner.search import Study, StudyConfig
from tuner.search.ray import worker
from tuner.search.ray.worker import make_evaluator
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import Answer, Outcome, Rule, SplitName, TrialRecord
from tuner.trial.result import TrialResult
from tuner.trial.run import PruneRule

SLOTS = (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20, help="per slot")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a trial sleeps")
    parser.add_argument("--out", type=Path)
    # Random proposals cost nothing, so that what is left is orchestration; auto adds its own cost.
    parser.add_argument("--sampler", default="random", help="random, or auto")
    options = parser.parse_args()
    # Workers cannot import a benchmark.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    runs = []
    for slots in SLOTS:
        run = measure(options.sampler, slots, slots * options.trials, options.seconds)
        runs.append(run)
        print(
            f"{slots} slots: {run['trials_per_hour']:6.0f} trials per hour, "
            f"{run['share_of_ideal']:.1%} of the ideal, "
            f"{run['overhead_s_per_trial'] * 1000:.0f} ms beside each trial",
            flush=True,
        )
    print_ratios(runs)
    if options.out:
        text = json.dumps({"trial_s": options.seconds, "runs": runs}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")


def measure(sampler: str, slots: int, trials: int, seconds: float) -> dict[str, float | str]:
    """Return what a study of sleeping trials took."""
    with tempfile.TemporaryDirectory() as folder:
        config = StudyConfig(
            name="sleepers",
            task="country_capital",
            trials=trials,
            workers=slots,
            sampler=sampler,
            budget=Budget(epsilons=(1e-3,)),
            confirm_top=1,
            test_seeds=0,
            device="cpu",
        )
        ends = Path(folder) / "ends"
        study = Study(config, folder=Path(folder), make_evaluator=Sleeping(seconds, ends))
        started = time.perf_counter()
        study.run()
        whole = time.perf_counter() - started
        lines = [line.split() for line in ends.read_text().splitlines()]
    run = {"sampler": sampler, "slots": slots, "trials": trials, "study_s": round(whole, 1)}
    return run | figures([(pid, float(when)) for pid, when in lines], slots, seconds)


def figures(ends: list[tuple[str, float]], slots: int, seconds: float) -> dict[str, float]:
    """Return the throughput from when every worker has done a trial, so without their start."""
    first = {pid: when for pid, when in sorted(ends, key=lambda end: -end[1])}
    if len(first) < slots:
        raise RuntimeError(f"{len(first)} of {slots} workers have started: give more --trials")
    steady = sorted(when for _, when in ends if when >= max(first.values()))
    rate = (len(steady) - 1) / (steady[-1] - steady[0])
    return {
        "steady_trials": len(steady),
        "trials_per_hour": round(3600 * rate),
        "share_of_ideal": round(rate * seconds / slots, 4),
        "overhead_s_per_trial": round(slots / rate - seconds, 4),
    }


@dataclass(frozen=True)
class Sleeping:
    """Makes evaluators on which a trial is a rest."""

    seconds: float
    ends: Path

    def __call__(self, config: StudyConfig) -> Evaluator:
        """Return an evaluator with a loaded model, as any worker has it."""

        def rest(
            evaluator: Evaluator, editor: Editor, *, seed: int, prunes: PruneRule | None
        ) -> TrialResult:
            time.sleep(self.seconds)
            with self.ends.open("a", encoding="utf-8") as ends:
                ends.write(f"{os.getpid()} {time.time()}\n")
            return TrialResult(made_up(editor, config, seed), {})

        worker.run_editor = rest
        return make_evaluator(config)


def made_up(editor: Editor, config: StudyConfig, seed: int) -> TrialRecord:
    """Return the record of a trial whose edits were all too large."""
    answers = tuple(
        Answer(
            rule=rule,
            epsilon=epsilon,
            epoch=None,
            alpha=0.0,
            scores=Scores(success=0.2),
            gain=0.0,
            deviation=Deviation.none(0.95),
            verdict=Verdict.WITHIN,
        )
        for epsilon in config.budget.epsilons
        for rule in Rule
    )
    return TrialRecord(
        outcome=Outcome.COMPLETED,
        editor=editor.name(),
        hyperparameters=editor.model_dump(mode="json"),
        split=SplitName.VAL,
        seed=seed,
        base=Scores(success=0.2),
        answers=answers,
    )


def print_ratios(runs: list[dict[str, float | str]]) -> None:
    """Print how throughput grows with the slots."""
    first = float(runs[0]["trials_per_hour"])
    for run in runs[1:]:
        times = float(run["trials_per_hour"]) / first
        print(f"{run['slots']} slots: {times:.2f} times as many trials an hour as one")


if __name__ == "__main__":
    main()
