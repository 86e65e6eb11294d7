"""Full fine-tuning, LoRA and senses on a Backpack, and its ensemble with a larger model.

    python benchmarks/three_way.py                       # both comparisons, all six tasks
    python benchmarks/three_way.py --models builtin:backpack --tasks country_capital

One study per task and editor, each with its shipped space and the same number of trials, which
answers all three budgets at once; a stopped run goes on where it was. The tables stand beside those
of Hewitt et al. 2024 (arXiv:2402.06155): Table 3 (Backpack of 170 M parameters) and Table 4
(GPT-J, and its ensemble with that Backpack). All figures are gains of success in percentage points
on the test split, retrained with hyperparameters chosen on validation: ours by the rule `fitted`,
theirs by the last epoch within the budget.
"""

import math

from comparison import Row, comparison_parser, keep_rows, known_rows, run_study, trial_seconds

from tuner.trial.records import StudyResultRecord

TASKS = (
    "stereotype",
    "country_capital",
    "company_ceo",
    "gender_bias",
    "verb_agreement",
    "temporal",
)
EDITORS = {
    "builtin:backpack": ("full_finetuning", "lora", "senses"),
    "builtin:neox": ("full_finetuning", "lora", "ensemble"),
}
EPSILONS = (1e-3, 1e-4, 1e-5)
# Per task and budget, in the order of the editors.
PUBLISHED = {
    "builtin:backpack": {
        "stereotype": ((1.1, 0.9, 7.8), (0.3, 0.1, 3.8), (0.0, 0.0, 1.9)),
        "country_capital": ((4.9, 3.4, 8.2), (2.3, 1.5, 4.3), (2.0, 1.7, 2.6)),
        "company_ceo": ((5.3, 0.4, 4.9), (0.4, 0.3, 0.6), (0.2, -0.2, 1.6)),
        "gender_bias": ((5.2, -0.9, 13.9), (-0.6, -0.1, 11.7), (-0.5, -0.8, 12.0)),
        "verb_agreement": ((16.7, 15.7, 16.4), (2.4, 1.1, 15.1), (0.0, 0.0, 10.6)),
        "temporal": ((1.1, 0.7, 0.5), (0.3, 0.8, 0.6), (0.2, 0.1, 0.2)),
    },
    "builtin:neox": {
        "country_capital": ((9.2, 10.9, 11.2), (3.2, 11.1, 6.4), (-0.1, 3.5, 4.2)),
        "company_ceo": ((11.6, 16.0, 5.1), (1.9, 16.6, 1.0), (0.1, 0.0, 2.0)),
        "stereotype": ((2.2, 0.5, 9.1), (0.4, 0.5, 4.0), (0.1, 0.0, 1.9)),
        "verb_agreement": ((24.2, 31.7, 18.7), (6.1, 6.2, 18.1), (-0.1, 2.0, 11.9)),
        "gender_bias": ((22.1, 5.6, 6.1), (2.4, 2.3, 5.0), (0.2, 0.3, 4.7)),
        "temporal": ((-0.3, 0.0, -0.7), (-0.4, -0.3, -0.6), (-0.4, 0.4, 0.0)),
    },
}


def rows(model: str, record: StudyResultRecord) -> list[Row]:
    """Return one row per budget; where no edit was selected, the base model is the answer."""
    found = []
    for epsilon in EPSILONS:
        winner = next((one for one in record.winners if one.epsilon == epsilon), None)
        interval = winner.test_gain_interval if winner else None
        found.append(
            {
                "model": model,
                "task": record.summary.task,
                "editor": record.summary.space,
                "epsilon": epsilon,
                "trials": len(record.entries),
                "seconds": trial_seconds(record),
                "validation_gain": winner.validation.gain if winner else 0.0,
                "test_gain": winner.test_gain if winner else 0.0,
                "test_gain_interval": interval.model_dump() if interval else None,
                "seeds_within_budget": winner.seeds_within_budget if winner else None,
                "certificate": winner.certificate.verdict.value if winner else None,
                "deviation": winner.certificate.deviation.estimate if winner else None,
            }
        )
    return found


def table(model: str, found: list[Row]) -> str:
    """Return the gains on test as Markdown, ours / the published ones, in percentage points.

    Ours carry half the width of their intervals; `!` marks a certificate that says "over".
    """
    editors = EDITORS[model]
    gains = {(row["task"], row["epsilon"], row["editor"]): row for row in found}
    tasks = [task for task in TASKS if any(row["task"] == task for row in found)]
    head = [f"{editor} {epsilon:g}" for epsilon in EPSILONS for editor in editors]
    lines = [f"| {model} | {' | '.join(head)} |", "|" + "---|" * (len(head) + 1)]
    columns: dict[int, list[tuple[float, float]]] = {}
    for task in tasks:
        cells = []
        for level, epsilon in enumerate(EPSILONS):
            for place, editor in enumerate(editors):
                row = gains.get((task, epsilon, editor))
                theirs = PUBLISHED[model][task][level][place]
                ours = math.nan if row is None or row["test_gain"] is None else row["test_gain"]
                column = columns.setdefault(len(cells), [])
                if row is None:
                    cells.append(f"– / {theirs:+.1f}")
                    continue
                column.append((100 * ours, theirs))
                broken = "!" if row and row["certificate"] == "over" else ""
                cells.append(f"{100 * ours:+.1f}{_spread(row)}{broken} / {theirs:+.1f}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    # Over the tasks that were run.
    means = [
        " / ".join(f"{sum(values) / len(values):+.1f}" for values in zip(*pairs, strict=True))
        for pairs in columns.values()
    ]
    return "\n".join([*lines, f"| mean | {' | '.join(means)} |"])


def _spread(row: Row) -> str:
    """Return half the width of a gain's interval, in percentage points; nothing for the base."""
    interval = row["test_gain_interval"]
    if interval is None or interval["high"] == interval["low"]:
        return ""
    return f" ± {50 * (interval['high'] - interval['low']):.1f}"


def main() -> None:
    parser = comparison_parser(__doc__.splitlines()[0], name="three_way", trials=8)
    parser.add_argument("--models", nargs="+", choices=tuple(EDITORS), default=tuple(EDITORS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--editors", nargs="+", help="by default all of each comparison")
    args = parser.parse_args()
    known = known_rows(args.out)
    for model in args.models:
        for task in args.tasks:
            for editor in EDITORS[model]:
                if not args.editors or editor in args.editors:
                    record = run_study(model, task, editor, EPSILONS, args)
                    known = keep_rows(args.out, known, rows(model, record))
        print(table(model, [row for row in known if row["model"] == model]), flush=True)


if __name__ == "__main__":
    main()
