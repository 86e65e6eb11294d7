"""Verbs about edits apart from studies: edit, evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.bundles import (
    AllowKindOption,
    BundleArgument,
    allow_kinds,
    budget_of,
    find_bundle,
    load_own_base,
)
from tuner.cli.options import (
    STUDIES,
    BlockLengthOption,
    BudgetsOption,
    DeviceOption,
    DivergenceOption,
    DtypeOption,
    EditsOption,
    FolderOption,
    GeneralOption,
    GeneralTokensOption,
    ModelOption,
    OldBudgetsOption,
    SeedOption,
    TaskOption,
    TwoSidedOption,
)
from tuner.cli.output import (
    JsonFlag,
    console,
    make_table,
    messages,
    print_json,
    show_deviation,
    show_divergence,
    show_interval,
    show_share,
    show_violations,
)
from tuner.cli.values import (
    read_budget,
    read_editor,
    read_member,
    read_model,
    read_settings,
    read_tokens,
)
from tuner.errors import ConfigError, EditError
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.evaluation.scores import HEADLINE_METRICS
from tuner.files.text_file import exists
from tuner.validation import show_path

if TYPE_CHECKING:
    from tuner.bundle.manifest import Manifest
    from tuner.editing.task import Task
    from tuner.trial.records import Answer


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb, epilog in (
        (
            edit,
            "Example: `tuner edit --task country_capital --editor lora --set learning_rate=5e-3 "
            "--budget 1e-3 --out my-edit`",
        ),
        (evaluate, "Example: `tuner evaluate my-edit --split test`"),
    ):
        app.command(epilog=epilog)(verb)


# What `evaluate` shows under success, in this order; other metrics follow.
_ORDER = (
    "exact", "hard_negative_loss", "related_loss", "efficacy", "efficacy_exact", "generalisation",
    "specificity", "edit_score", "locality_gold", "locality_base", "fluency", "consistency",
    "drawdown",
)  # fmt: skip
# Measured of memories alone.
_SCOPE_LABELS = {
    "scope_precision": "scope, precision",
    "scope_recall": "scope, recall",
    "scope_entry_recall": "scope, recall by the right edit",
    "scope_auc": "scope, AUC",
}


def _labels(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the label of each figure, in the order in which they are shown."""
    from tuner.evaluation.metrics import METRICS

    further = [name for name in figures if name not in (*_ORDER, *_SCOPE_LABELS, "success")]
    shown = [name for name in (*_ORDER, *further) if name in figures]
    labels = {name: METRICS.find(name).label for name in shown}
    return labels | {name: text for name, text in _SCOPE_LABELS.items() if name in figures}


def edit(
    task: TaskOption,
    editor: Annotated[str, typer.Option("--editor", help="The method: see `tuner list`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the bundle is written.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A hyperparameter, as name=value; repeatable.")
    ] = None,
    budgets: BudgetsOption = None,
    old_budgets: OldBudgetsOption = None,
    two_sided: TwoSidedOption = False,
    divergence: DivergenceOption = None,
    model: ModelOption = "builtin:neox",
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "val",
    rule: Annotated[str, typer.Option("--rule", help="fitted, best or published.")] = "fitted",
    edits: EditsOption = None,
    general: GeneralOption = None,
    general_tokens: GeneralTokensOption = None,
    block_length: BlockLengthOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Run one trial and keep its delta for the loosest budget, without a search."""
    method = read_editor(editor, read_settings(settings or []))
    given = [*(budgets or ()), *(old_budgets or ())]
    budget = read_budget(given, two_sided=two_sided, divergence=divergence)
    tokens = read_tokens(general_tokens)
    from tuner.bundle.bundle import make_bundle
    from tuner.bundle.files import check_place

    check_place(out)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tuner.cli.hints import tell_hints
    from tuner.editing.companions import Companions
    from tuner.editing.corpus import load_general_text
    from tuner.editing.task_folder import load_task
    from tuner.trial.evaluator import Evaluator
    from tuner.trial.records import EpochRecord, Rule, SplitName
    from tuner.trial.run import run_editor

    chosen_split, chosen_rule = (
        read_member(SplitName, split, "split"),
        read_member(Rule, rule, "rule"),
    )
    examples = load_task(task, edits)
    tell_hints(task, examples.loss)
    method.check_task(examples)
    base = read_model(model, dtype, device)
    companions = Companions(device=str(base.device))
    method.check_model(base, companions)
    text = load_general_text(general, base, block_length=block_length, tokens=tokens)
    evaluator = Evaluator(base, examples, budget, text, companions=companions)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=messages(), transient=True) as bar:
        epochs = bar.add_task("epochs", total=method.step_count)

        def note(epoch: EpochRecord) -> None:
            bar.update(epochs, completed=epoch.epoch)

        result = run_editor(evaluator, method, seed=seed, split=chosen_split, on_epoch=note)
    if result.record.failure is not None:
        raise EditError(f"The edit failed: {result.record.failure}")
    epsilon = budget.epsilons[0]
    bundle = make_bundle(base, examples, result, epsilon, rule=chosen_rule, task_path=task)
    written = bundle.save(out) if bundle is not None else None
    if json_:
        print_json({"record": result.record, "bundle": None if written is None else str(written)})
        return
    columns_ = ("ε", "rule", "epoch", "α", "success", "exact", "gain")
    table = make_table(
        f"{examples.name} with {method.name()}",
        (*columns_, "deviation", "divergence"),
        right=columns_[2:5],
    )
    for answer in result.record.answers:
        table.add_row(
            epsilon_name(answer.epsilon),
            answer.rule.value,
            str(answer.epoch or "base"),
            f"{answer.alpha:.2f}",
            f"{answer.scores.success:.3f}",
            show_share(answer.scores.exact),
            show_interval(answer.gain, answer.gain_interval),
            f"{show_deviation(answer.deviation)} {answer.verdict.value}",
            show_divergence(answer.deviation),
        )
    console().print(table)
    _print_facts(result.record.answers)
    for constraint in evaluator.constraints:
        broken = [
            f"{answer.rule.value} at ε={epsilon_name(answer.epsilon)}"
            for answer in result.record.answers
            if answer.violations[constraint.name] > 0
        ]
        state = f"broken by {', '.join(broken)}" if broken else "kept by all"
        console().print(f"Constraint {constraint.words}: {state}", soft_wrap=True)
    if written is None:
        limits = f"ε={epsilon_name(epsilon)}" + (
            " and the constraints" if evaluator.constraints else ""
        )
        console().print(f"No epoch keeps {limits}: the base model is the answer; no bundle.")
    else:
        console().print(f"Bundle for ε={epsilon_name(epsilon)}: {written}", soft_wrap=True)
        gain = result.at(epsilon, chosen_rule).gain
        if gain <= 0:
            messages().print(
                f"This edit keeps the budget and gains nothing ({gain:+.3f}): the base model does "
                "as well without it.",
                style="yellow",
                soft_wrap=True,
            )


def evaluate(
    bundle: BundleArgument,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="By default the bundle's own task.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="val or test; by default the one it was made on.")
    ] = None,
    edits: Annotated[
        int | None,
        typer.Option("--edits", min=1, help="Edits of the split; by default as it was made."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "-e", help="Which of a study's winners.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="By default the bundle's own base.")
    ] = None,
    general: GeneralOption = None,
    general_tokens: GeneralTokensOption = None,
    block_length: BlockLengthOption = None,
    device: DeviceOption = "auto",
    folder: FolderOption = STUDIES,
    allow_kind: AllowKindOption = None,
    json_: JsonFlag = False,
) -> None:
    """Judge a delta: success, generation, hard negatives, related text and deviation."""
    allow_kinds(allow_kind)
    edited = find_bundle(bundle, epsilon, folder, device, model)
    from tuner.editing.corpus import load_general_text
    from tuner.editing.task_folder import load_task
    from tuner.trial.evaluator import Evaluator
    from tuner.trial.records import SplitName

    manifest = edited.manifest
    judged = _task_of(manifest) if task is None else load_task(task)
    if judged.hash != manifest.task_hash and judged.name == manifest.task:
        judged = judged.with_edits(manifest.edits)
    judged = judged.with_edits(edits)
    base = load_own_base(edited, model, device)
    budget = budget_of(manifest)
    text = load_general_text(
        general, base, block_length=block_length, tokens=read_tokens(general_tokens)
    )
    evaluator = Evaluator(base, judged, budget, text)
    name = manifest.split if split is None else read_member(SplitName, split, "split")
    before = evaluator.base_scores(name)
    after = evaluator.full_scores(name, edited.delta)
    gain = evaluator.success_meter(name).gain_interval(after, before)
    deviation = evaluator.meter.measure(edited.delta, budget.epsilons)
    violations = evaluator.violations(name, after)
    if json_:
        print_json(
            {
                "base": before,
                "edited": after,
                "gain": after.success - before.success,
                "gain_interval": gain,
                "deviation": deviation,
                "epsilon": manifest.epsilon,
                "verdict": deviation.verdict(manifest.epsilon),
                "violations": violations,
            }
        )
        return
    table = make_table(f"{judged.name}, {name.value} split", ("", "base", "edited", "change"))
    table.add_row(
        "success",
        show_share(before.success),
        show_share(after.success),
        show_interval(after.success - before.success, gain),
    )
    figures, of_base = after.figures(), before.figures()
    for figure, label in _labels(figures).items():
        base_value, value = of_base.get(figure), figures[figure]
        # The base model has no memory whose scope could be judged.
        change = show_interval(None if base_value is None else value - base_value, None)
        table.add_row(label, show_share(base_value), show_share(value), change)
    console().print(table)
    console().print(
        f"Deviation {show_deviation(deviation)} from {deviation.tokens:,} tokens: "
        f"{deviation.verdict(manifest.epsilon).value} for ε={epsilon_name(manifest.epsilon)}; "
        f"divergence {show_divergence(deviation)} nats per token"
    )
    for constraint in evaluator.constraints:
        state = show_violations({constraint.name: violations[constraint.name]})
        console().print(f"Constraint {constraint.words}: {state}", soft_wrap=True)


def _task_of(manifest: "Manifest") -> "Task":
    """Return the very task that a bundle was made for: where it lay, or by its name.

    Raises:
        ConfigError: it is in neither place, or another one is there now.
    """
    from tuner.editing.task_folder import load_task, task_names

    places = [] if manifest.task_path is None else [manifest.task_path]
    if manifest.task_path is None and manifest.task in task_names():
        places.append(manifest.task)
    for place in places:
        if place == manifest.task or exists(place):
            task = load_task(place).with_edits(manifest.edits)
            if task.hash == manifest.task_hash:
                return task
            raise ConfigError(
                f"The task {manifest.task!r} ({show_path(place)}) is not the one that this bundle "
                "was made for: its rows or its card have changed. To judge on it all the same say "
                f"--task {show_path(place)}."
            )
    lay = "" if manifest.task_path is None else f" at {show_path(manifest.task_path)}"
    raise ConfigError(
        f"The task {manifest.task!r}, for which this bundle was made, is not to be found{lay}. "
        "Say where it is by --task FOLDER."
    )


def _print_facts(answers: Sequence["Answer"]) -> None:
    """Print the published figures of fact edits and of memories, where there are any."""
    had = [
        name for name in HEADLINE_METRICS if any(name in a.scores.fact_figures() for a in answers)
    ]
    of_scope = [name for name in had if name.startswith("scope_")]
    for title, names in (
        ("Facts, the true tokens given", [name for name in had if name not in of_scope]),
        ("Which prompts the memory takes for its edits'", of_scope),
    ):
        known = [a for a in answers if any(name in a.scores.fact_figures() for name in names)]
        if not known:
            continue
        heads = ("ε", "rule", *(name.removeprefix("scope_").replace("_", " ") for name in names))
        table = make_table(title, heads, right=heads[2:])
        for answer in known:
            shares = answer.scores.fact_figures()
            cells = (show_share(shares.get(name)) for name in names)
            table.add_row(epsilon_name(answer.epsilon), answer.rule.value, *cells)
        console().print(table)
