"""The verb that searches."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from tuner.cli.options import (
    EXPERIMENT,
    STUDIES,
    BlockLengthOption,
    BudgetsOption,
    DivergenceOption,
    EditsOption,
    FolderOption,
    GeneralOption,
    GeneralTokensOption,
    OldBudgetsOption,
    TwoSidedOption,
)
from tuner.cli.output import (
    JsonFlag,
    console,
    messages,
    print_json,
)
from tuner.cli.stopping import stoppable
from tuner.cli.study_tables import print_winners, with_winners
from tuner.cli.values import read_tokens
from tuner.errors import ConfigError, MissingExtra
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.settings import variable
from tuner.trial.records import (
    StudyResultRecord,
    StudySummary,
    TrialEntry,
)
from tuner.validation import describe_problem

if TYPE_CHECKING:
    from tuner.search import StudyConfig
    from tuner.search.observers import ObserverMaker
    from tuner.tracking import SyncReport

_STORAGE = variable("storage")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: `tuner search --task country_capital --space lora --trials 20`")(
        search
    )


@stoppable()
def search(
    study: Annotated[
        Path | None, typer.Argument(help="A study as YAML; options given beside it win.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="A task's name or folder.")
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", "-s", help="A search space's name or file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="builtin:NAME, a folder or a hub id.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Continues the study of that name.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials in all.")] = None,
    two_sided: TwoSidedOption = False,
    divergence: DivergenceOption = None,
    budgets: BudgetsOption = None,
    old_budgets: OldBudgetsOption = None,
    steer: Annotated[
        float | None, typer.Option("--steer", help="The budget that steers the sampler.")
    ] = None,
    rule: Annotated[str | None, typer.Option("--rule", help="fitted, best or published.")] = None,
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help="auto, gp, tpe, random or package.module:Class."),
    ] = None,
    edits: EditsOption = None,
    general: GeneralOption = None,
    general_tokens: GeneralTokensOption = None,
    block_length: BlockLengthOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the study.")] = None,
    workers: Annotated[
        str | None, typer.Option("--workers", "-w", help="Trials at a time, or auto.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")
    ] = None,
    test_seeds: Annotated[
        int | None, typer.Option("--test-seeds", help="Seeds of the retraining on the test split.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", help="Start no trial after so many seconds.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="URL of a database for the ledger; by default a file of the study.",
            envvar=_STORAGE,
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            help="Where MLflow keeps the runs; by default a database beside the studies.",
            envvar="MLFLOW_TRACKING_URI",
        ),
    ] = None,
    track: Annotated[
        bool | None, typer.Option("--track/--no-track", help="Show the study in MLflow.")
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--tracking", help="Who follows it: mlflow, none or package.module:Class; repeatable."
        ),
    ] = None,
    folder: FolderOption = STUDIES,
    json_: JsonFlag = False,
) -> None:
    """Search for the best edit per budget, certify it, and retrain it on the test split.

    Run the same command again to continue a study that was stopped or killed.
    """
    epsilons = [*(budgets or ()), *(old_budgets or ())]
    # Said before the heavy libraries load, so that a person sees that something happens.
    messages().print(f"tuner: preparing the study in {folder} …", soft_wrap=True)
    from tuner.cli.hints import tell_hints
    from tuner.cli.progress import StudyDisplay
    from tuner.search import Study

    config = _configure(
        study,
        {
            "task": task,
            "space": space,
            "model": model,
            "name": name,
            "trials": trials,
            "budget": _budget(epsilons, two_sided, divergence),
            "epsilon": steer,
            "rule": rule,
            "sampler": sampler,
            "tracking": _tracking(trackers, track),
            "edits": edits,
            "general": general,
            "general_tokens": read_tokens(general_tokens) or None,
            "block_length": block_length,
            "seed": seed,
            "workers": int(workers) if workers is not None and workers.isdigit() else workers,
            "device": device,
            "dtype": dtype,
            "test_seeds": test_seeds,
            "time_limit_s": time_limit,
            "storage": storage,
        },
    )
    from tuner.search.observers import MLFLOW

    tracked = MLFLOW in config.tracking
    if tracked:
        # Told now: once the search runs, nothing about MLflow may stop it.
        from tuner.tracking import check_tracking

        check_tracking(tracking_uri, folder)
    watcher = _Watcher(folder, tracking_uri if tracked else None, tracked)
    asked = Study(config, folder=folder, observers=[watcher, *_trackers(config, folder)])
    tell_hints(config.task, asked.task.loss)
    with StudyDisplay(messages()) as display:
        result = asked.run(display)
    if watcher.no_report is not None:
        messages().print(watcher.no_report, soft_wrap=True)
    if json_:
        print_json({"result": result.record, "report": watcher.report_path})
        if watcher.sync is not None and watcher.sync.message:
            messages().print(watcher.sync.message, soft_wrap=True)
    else:
        _close(result.record, watcher, folder)


def _budget(
    epsilons: list[float] | None, two_sided: bool, divergence: float | None
) -> dict[str, Any] | None:
    """Return what the options say of the budget; None where they say nothing."""
    said = {
        "epsilons": epsilons or None,
        "two_sided": two_sided or None,
        "divergence": divergence,
    }
    return {key: value for key, value in said.items() if value is not None} or None


def _tracking(trackers: list[str] | None, track: bool | None) -> list[str] | None:
    """Return what the two options say of the trackers; None where they say nothing."""
    from tuner.search.observers import MLFLOW, NO_TRACKING

    if track is not False:
        return trackers if trackers or track is None else [MLFLOW]
    others = [name for name in trackers or () if name != MLFLOW]
    return others or [NO_TRACKING]


def _trackers(config: "StudyConfig", folder: Path) -> "list[ObserverMaker]":
    """Return the makers of all trackers that are not MLflow, which has more to it."""
    from tuner.search.observers import MLFLOW, NO_TRACKING, TRACKERS

    outside = [name for name in config.tracking if name not in (MLFLOW, NO_TRACKING)]
    return [partial(TRACKERS.find(name), folder=folder) for name in outside]


def _configure(study: Path | None, flags: dict[str, Any]) -> "StudyConfig":
    from tuner.search import StudyConfig, load_study

    given = {key: value for key, value in flags.items() if value is not None}
    if study is not None:
        return load_study(study, given)
    if "task" not in given:
        from tuner.editing.task_folder import task_names

        raise ConfigError(
            "A study needs a task: give --task NAME or a study file. "
            f"Known tasks: {', '.join(task_names())}."
        )
    try:
        return StudyConfig.model_validate(given)
    except ValidationError as error:
        problems = (describe_problem(problem) for problem in error.errors(include_url=False))
        raise ConfigError("\n".join(problems)) from None


class _Watcher:
    """Follows a study for the user: MLflow while it runs, the report when it ends."""

    def __init__(self, folder: Path, uri: str | None, track: bool) -> None:
        self._folder = folder
        self._uri = uri
        self._track = track
        self._tracker: Any = None
        self.report_path: Path | None = None
        self.no_report: str | None = None
        """Why there is no report, where none can be drawn."""
        self.sync: SyncReport | None = None

    def __call__(self, summary: StudySummary) -> "_Watcher":
        if self._track:
            from tuner.tracking import Tracker

            self._tracker = Tracker(self._uri, EXPERIMENT, summary, self._folder)
            self._tracker.start()
        return self

    def trial_changed(self, entry: TrialEntry) -> None:
        if self._tracker is not None:
            self._tracker.trial_changed(entry)

    def study_finished(self, result: StudyResultRecord) -> None:
        from tuner.report import write_figures, write_report

        folder = result.summary.folder
        figures: tuple[Path, ...] = ()
        try:
            self.report_path = write_report(result, folder / "report.html")
            if self._tracker is not None:
                figures = write_figures(result, folder / "figures")
        except MissingExtra as missing:
            self.no_report = f"No report was drawn: {missing}"
        if self._tracker is not None:
            self._tracker.study_finished(with_winners(result), self.report_path, figures)

    def close(self) -> None:
        if self._tracker is not None:
            self.sync = self._tracker.close()

    @property
    def uri(self) -> str:
        """Where the runs are."""
        from tuner.tracking import located_uri

        return located_uri(self._uri, self._folder)


def _close(record: StudyResultRecord, watcher: _Watcher, folder: Path) -> None:
    out = console()
    print_winners(out, record)
    name = record.summary.name
    place = "" if folder == STUDIES else f" --folder {shlex.quote(str(folder))}"
    if watcher.report_path is not None:
        out.print(f"Report:  {watcher.report_path}", soft_wrap=True)
    if watcher.sync is not None:
        from tuner.tracking import study_url, ui_address, ui_command

        out.print(f"MLflow:  {ui_command(watcher.uri)}", soft_wrap=True)
        if watcher.sync.experiment_id is not None:
            address = study_url(
                ui_address(watcher.uri),
                watcher.sync.experiment_id,
                record.summary.uid,
                charts=True,
            )
            out.print(f"         {address}", soft_wrap=True)
        if watcher.sync.message:
            messages().print(watcher.sync.message, soft_wrap=True)
    if record.winners:
        epsilon = epsilon_name(record.winners[0].epsilon)
        out.print(
            f"Export:  tuner export {name} my-edit --epsilon {epsilon}{place}",
            soft_wrap=True,
        )
