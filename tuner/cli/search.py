"""The verb that searches."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from tuner.cli.options import (
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
from tuner.cli.study_tables import print_winners
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
    from tuner.search.trackers import StudyTracker, TrackingPlace

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
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", help="none, median, successive_halving or package.module:Class."
        ),
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
    tracked_by: Annotated[
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
            "scheduler": scheduler,
            "tracking": _tracking(tracked_by, track),
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
    from tuner.search.trackers import TrackingPlace

    report = _Report()
    trackers = _Trackers(config.tracking, TrackingPlace(folder, tracking_uri))
    asked = Study(config, folder=folder, observers=[report, *trackers.makers])
    tell_hints(config.task, asked.task.loss)
    with StudyDisplay(messages()) as display:
        result = asked.run(display)
    if report.none_because is not None:
        messages().print(report.none_because, soft_wrap=True)
    if json_:
        print_json({"result": result.record, "report": report.path})
    else:
        _close(result.record, report.path, trackers.where(), folder)
    for sentence in trackers.missing():
        messages().print(sentence, soft_wrap=True)


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
    from tuner.search.trackers import MLFLOW, NO_TRACKING

    if track is not False:
        return trackers if trackers or track is None else [MLFLOW]
    others = [name for name in trackers or () if name != MLFLOW]
    return others or [NO_TRACKING]


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


class _Report:
    """Draws the report when a study ends."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.none_because: str | None = None
        """Why there is no report, where none can be drawn."""

    def __call__(self, summary: StudySummary) -> "_Report":
        return self

    def trial_changed(self, entry: TrialEntry) -> None:
        """Do nothing: it is drawn once."""

    def study_finished(self, result: StudyResultRecord) -> None:
        from tuner.report import write_report

        try:
            self.path = write_report(result, result.summary.folder / "report.html")
        except MissingExtra as missing:
            self.none_because = f"No report was drawn: {missing}"

    def close(self) -> None:
        """Do nothing: nothing is held open."""


class _Trackers:
    """The trackers that a study names, by the registry, and what they say when it has ended."""

    def __init__(self, names: Sequence[str], place: "TrackingPlace") -> None:
        from tuner.search.trackers import NO_TRACKING, TRACKERS

        self._place = place
        self._kinds = [TRACKERS.find(name) for name in names if name != NO_TRACKING]
        self._made: list[StudyTracker] = []
        for kind in self._kinds:
            # Told now: once the search runs, no tracker may stop it.
            kind.check(place)

    @property
    def makers(self) -> "list[ObserverMaker]":
        return [partial(self._make, kind) for kind in self._kinds]

    def _make(self, kind: "type[StudyTracker]", summary: StudySummary) -> "StudyTracker":
        tracker = kind(summary, self._place)
        self._made.append(tracker)
        return tracker

    def where(self) -> list[str]:
        return [line for tracker in self._made for line in tracker.where()]

    def missing(self) -> list[str]:
        told = (tracker.missing() for tracker in self._made)
        return [sentence for sentence in told if sentence is not None]


def _close(record: StudyResultRecord, report: Path | None, where: list[str], folder: Path) -> None:
    out = console()
    print_winners(out, record)
    name = record.summary.name
    place = "" if folder == STUDIES else f" --folder {shlex.quote(str(folder))}"
    if report is not None:
        out.print(f"Report:  {report}", soft_wrap=True)
    for line in where:
        out.print(line, soft_wrap=True)
    if record.winners:
        epsilon = epsilon_name(record.winners[0].epsilon)
        out.print(
            f"Export:  tuner export {name} my-edit --epsilon {epsilon}{place}",
            soft_wrap=True,
        )
