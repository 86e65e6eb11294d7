"""All editors side by side, at equal trials and at equal compute, under one budget.

    python benchmarks/editors.py                      # every shipped editor, both tasks
    python benchmarks/editors.py --editors memit lora --tasks country_capital

One study per editor and task, each with its shipped space, the same number of trials and the same
seed; a stopped run goes on where it was. "Equal compute" is the best within the time that the
cheapest editor of a task needed for all its trials; times are of the trials alone, as the workers
measured them. The table is printed as Markdown.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import tuner
from tuner.editors import editor_names
from tuner.evaluation.deviation.budget import Budget
from tuner.search import Study, StudyConfig
from tuner.trial.records import Rule, StudyResultRecord

TASKS = ("counterfact_world", "country_capital")
EPSILON = 1e-3


def run(editor: str, task: str, args: argparse.Namespace) -> StudyResultRecord:
    config = StudyConfig(
        name=f"{task}-{editor}",
        task=task,
        space=editor,
        trials=args.trials,
        seed=args.seed,
        budget=Budget(epsilons=(EPSILON,)),
        confirm_top=2,
        test_seeds=args.test_seeds,
    )
    shown = -1

    def show(progress: Any) -> None:
        nonlocal shown
        if progress.done != shown:
            shown = progress.done
            print(f"{config.name}: {shown}/{args.trials}", flush=True)

    return Study(config, folder=args.studies).run(show).record


def curve(record: StudyResultRecord) -> list[tuple[float, float]]:
    """Return (seconds spent, best gain so far) after each trial, in the order of their numbers."""
    spent, best, points = 0.0, 0.0, []
    for entry in record.entries:
        if entry.record is None:
            continue
        spent += sum(entry.record.seconds.values())
        if entry.record.failure is None:
            best = max(best, entry.record.answer(EPSILON, Rule.FITTED).gain)
        points.append((spent, best))
    return points


def row(record: StudyResultRecord, seconds: float) -> dict[str, Any]:
    points = curve(record)
    winner = record.winners[0] if record.winners else None
    return {
        "editor": record.summary.space,
        "task": record.summary.task,
        "trials": len(points),
        "failed": sum(
            entry.record is None or entry.record.failure is not None for entry in record.entries
        ),
        "seconds": points[-1][0],
        # Of the edit that was selected: what looked best may have broken the budget on fresh text.
        "gain": winner.validation.gain if winner else 0.0,
        "best_gain_of_the_search": points[-1][1],
        "gain_interval": None
        if winner is None or winner.validation.gain_interval is None
        else winner.validation.gain_interval.model_dump(),
        "equal_compute_seconds": seconds,
        "gain_at_equal_compute": max(
            (gain for spent, gain in points if spent <= seconds), default=0.0
        ),
        "success": winner.validation.success if winner else None,
        "exact": winner.validation.scores.exact if winner else None,
        "test_gain": winner.test_gain if winner else None,
        "test_gain_interval": winner.test_gain_interval.model_dump()
        if winner and winner.test_gain_interval
        else None,
        "certificate": winner.certificate.verdict.value if winner else None,
        "deviation": winner.certificate.deviation.estimate if winner else None,
        "deviation_se": winner.certificate.deviation.standard_error if winner else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    def gain(value: float | None, interval: dict[str, float] | None) -> str:
        if value is None:
            return "–"
        bounds = f" [{interval['low']:+.2f}, {interval['high']:+.2f}]" if interval else ""
        return f"{value:+.3f}{bounds}"

    lines = [
        "| task | editor | gain, validation | at equal compute | gain, test | success | exact "
        "| deviation on fresh text | s/trial |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(rows, key=lambda one: (one["task"], -one["gain"])):
        deviation = (
            "–"
            if one["deviation"] is None
            else f"{one['deviation']:.1e} ± {one['deviation_se']:.0e}, {one['certificate']}"
        )
        success = "–" if one["success"] is None else f"{one['success']:.3f}"
        exact = "–" if one["exact"] is None else f"{one['exact']:.3f}"
        lines.append(
            f"| {one['task']} | {one['editor']} | {gain(one['gain'], one['gain_interval'])} "
            f"| {one['gain_at_equal_compute']:+.3f} "
            f"| {gain(one['test_gain'], one['test_gain_interval'])} | {success} | {exact} "
            f"| {deviation} | {one['seconds'] / one['trials']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-seeds", type=int, default=1)
    parser.add_argument("--editors", nargs="+", default=editor_names())
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--studies", type=Path, default=Path("tuner-studies/editors"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/editors.json"))
    args = parser.parse_args()
    rows = []
    for task in args.tasks:
        records = []
        for editor in args.editors:
            try:
                records.append(run(editor, task, args))
            except tuner.TunerError as error:
                print(f"{task}, {editor}: {error}")
        cheapest = min((curve(record)[-1][0] for record in records), default=0.0)
        rows += [row(record, cheapest) for record in records]
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    asked = {(one["task"], one["editor"]) for one in rows}
    rows += [one for one in known if (one["task"], one["editor"]) not in asked]
    args.out.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
