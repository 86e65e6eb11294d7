"""Nine editors on the small-world analogs of SERAC's four problems, ten edits at once.

    python benchmarks/four_problems.py                     # all editors, all four problems
    python benchmarks/four_problems.py --tasks qa_world --editors serac mend

One study per problem and editor, each with its shipped space and the same number of trials, which
answers both budgets at once; a stopped run goes on where it was. Hyperparameters are chosen on
validation by the rule `fitted`, without regard to drawdown; the figures are those of the test
split: edit success (ES) with an interval over edits, drawdown (DD) and the scope decision's AUC.
They stand beside Mitchell et al. 2022 (arXiv:2206.06520), whose editors kept no budget.
"""

import numpy as np
from comparison import Row, comparison_parser, keep_rows, known_rows, run_study, trial_seconds

import tuner
from tuner.editing.task_folder import load_task
from tuner.evaluation.scores import Scores
from tuner.evaluation.statistics.confidence import clustered_interval
from tuner.trial.evaluator import Evaluator
from tuner.trial.records import SplitName, StudyResultRecord

TASKS = ("qa_world", "qa_hard_world", "fact_check_world", "dialogue_world")
EDITORS = (
    "full_finetuning",
    "lora",
    "memit",
    "mend",
    "grace",
    "wise",
    "look_up",
    "retrieve_and_prompt",
    "serac",
)
EPSILONS = (1e-2, 1e-3)
# ES / DD per task; of LoRA, MEMIT, GRACE and WISE none is published.
PUBLISHED = {
    "full_finetuning": ("0.57 / 0.05", "0.32 / 0.11", "0.60 / 0.00", "–"),
    "mend": ("0.82 / 0.19", "0.48 / 0.26", "0.60 / 0.02", "0.49 / 2.15"),
    "look_up": ("0.94 / 0.05", "0.52 / 0.13", "0.57 / 0.01", "–"),
    "retrieve_and_prompt": ("0.49 / 0.03", "0.28 / 0.03", "0.63 / 0.01", "0.51 / 0.00"),
    "serac": ("0.99 / 0.01", "0.91 / 0.03", "0.88 / 0.05", "0.99 / 0.00"),
}


def rows(model: str, record: StudyResultRecord, base: Scores) -> list[Row]:
    """Return one row per budget; where no edit was selected, the base model is the answer."""
    task = load_task(record.summary.task)
    records = [row.record for row in task.test.limited(task.simultaneous_edits).ood.rows]
    found = []
    for epsilon in EPSILONS:
        winner = next((one for one in record.winners if one.epsilon == epsilon), None)
        scores = winner.test[0].answer.scores if winner and winner.test else base
        success = np.array(scores.row_success or base.row_success)
        found.append(
            {
                "model": model,
                "task": record.summary.task,
                "editor": record.summary.space,
                "epsilon": epsilon,
                "trials": len(record.entries),
                "seconds": trial_seconds(record),
                "selected": winner is not None,
                "validation_success": winner.validation.success if winner else None,
                "success": scores.success,
                "success_interval": clustered_interval(success, np.array(records)).model_dump(),
                "base_success": base.success,
                "drawdown": scores.drawdown if winner else 0.0,
                "scope_precision": scores.scope_precision,
                "scope_recall": scores.scope_recall,
                "scope_auc": scores.scope_auc,
                "certificate": winner.certificate.verdict.value if winner else None,
                "deviation": winner.certificate.deviation.estimate if winner else None,
            }
        )
    return found


def table(epsilon: float, found: list[Row]) -> str:
    """Return ES ± half its interval / DD per problem as Markdown, with the published ones."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in found)]
    cells = {(row["task"], row["editor"]): row for row in found if row["epsilon"] == epsilon}
    heads = [head for task in tasks for head in (task, "published")]
    lines = [f"| ES / DD at {epsilon:g} | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for editor in EDITORS:
        shown = []
        for task in tasks:
            row = cells.get((task, editor))
            shown.append("–" if row is None else _cell(row))
            published = PUBLISHED.get(editor)
            shown.append(published[TASKS.index(task)] if published else "–")
        lines.append(f"| {editor} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    """Return one editor on one problem; `base` marks that no edit was selected."""
    interval = row["success_interval"]
    half = (interval["high"] - interval["low"]) / 2
    drawdown = "–" if row["drawdown"] is None else f"{row['drawdown']:.2f}"
    mark = "" if row["selected"] else " base"
    return f"{row['success']:.2f} ± {half:.2f} / {drawdown}{mark}"


def main() -> None:
    parser = comparison_parser(__doc__.splitlines()[0], name="four_problems", trials=6)
    parser.add_argument("--model", default="builtin:neox")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=EDITORS)
    args = parser.parse_args()
    model = tuner.load_model(args.model)
    general = tuner.load_general_text(None, model)
    known = known_rows(args.out)
    for task in args.tasks:
        evaluator = Evaluator(model, load_task(task), tuner.Budget(epsilons=EPSILONS), general)
        base = evaluator.base_scores(SplitName.TEST)
        for editor in args.editors:
            record = run_study(args.model, task, editor, EPSILONS, args)
            known = keep_rows(args.out, known, rows(args.model, record, base))
    for epsilon in EPSILONS:
        print(table(epsilon, known), flush=True)


if __name__ == "__main__":
    main()
